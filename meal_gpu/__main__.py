"""`python -m meal_gpu`."""

from meal_gpu.cli import main

main()
