"""Which of many image files cannot be used, found in parallel before hours are spent on them."""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size, image_size, inspect
from meal_gpu.images.loader import decode

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""

ON_BAD = ("stop", "skip")
"""What to do about files that cannot be used."""

_SHOWN = 5  # problems in an error


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used.

    Attributes:
        path: the file.
        message: what is wrong and how to mend it; it names the file too.
    """

    path: Path
    message: str


def first_size(paths: Sequence[Path]) -> Size | None:
    """(height, width) of the first file that has one."""
    for path in paths:
        try:
            return image_size(path)
        except DataError:
            continue
    return None


def faults(
    path: Path, native: Size | None, expected: str, steps: Sequence[Callable[[Path], object]]
) -> Iterator[Problem]:
    """What is wrong with one file: by itself, in its size, and in what `steps` raise of it."""
    try:
        size = inspect(path)
        if native is not None and size != native:
            yield Problem(
                path,
                f"{path}: {size[0]}×{size[1]} pixels (height × width) found, "
                f"{expected} {native[0]}×{native[1]}; resize the file or remove it",
            )
        for step in steps:
            step(path)
    except DataError as error:
        yield Problem(path, str(error))


def probe(
    paths: Sequence[Path], native: Size | None, *, deep: bool = False, progress: Progress | None = None
) -> list[Problem]:
    """Look at every image file: header and structure, and with `deep` all pixels.

    Args:
        native: the (height, width) that all must have; None: any.
    """

    def look(path: Path) -> list[Problem]:
        return list(faults(path, native, "the first image has", (decode,) if deep else ()))

    problems: list[Problem] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        for found in workers.map(look, paths):
            problems += found
            if progress:
                progress(1)
    return problems


def refusal(problems: Sequence[Problem], fix: str) -> DataError:
    """The error that names the first problems, and says how many more there are."""
    lines = [problem.message for problem in problems[:_SHOWN]]
    if more := len(problems) - len(lines):
        lines.append(f"and {more} more")
    return DataError("\n".join([*lines, fix]))


def quarantine(problems: Sequence[Problem]) -> str:
    """CSV with a row for each problem: file, reason."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "reason"])
    rows.writerows([str(problem.path), problem.message] for problem in problems)
    return text.getvalue()
