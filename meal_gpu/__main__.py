"""`python -m meal_gpu`, and the program `meal-gpu`."""

import sys


def main() -> None:
    """As `cli.main`, which takes a moment to import: what may happen meanwhile has its exit code too."""
    try:
        from pathlib import Path

        try:
            Path.cwd()  # libraries end the process where there is none
        except FileNotFoundError:
            sys.exit("meal-gpu: the working directory is gone: cd into one that is there")
        from meal_gpu import cli
        from meal_gpu.lock import end_with_parent

        end_with_parent()
        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
