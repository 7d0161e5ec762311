"""`python -m meal_gpu`."""

from meal_gpu.cli import main
from meal_gpu.lock import end_with_parent

end_with_parent()
main()
