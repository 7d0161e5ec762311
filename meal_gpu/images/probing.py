"""Which of many image files cannot be used, found in parallel before hours are spent on them."""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class Look:
    """What one file was found to be: its (height, width), if it has one, and what else is wrong with it."""

    path: Path
    size: Size | None
    fault: str | None

    @classmethod
    def at(cls, path: Path, steps: Sequence[Callable[[Path], object]] = ()) -> "Look":
        """Header and structure, and what `steps` raise of it."""
        size = None
        try:
            size = inspect(path)
            for step in steps:
                step(path)
        except DataError as error:
            return cls(path, size, str(error))
        return cls(path, size, None)

    def problems(self, native: Size | None, expected: str) -> Iterator[Problem]:
        """Its own, and that its size is not `native`; `expected` says who has that."""
        if self.size and native and self.size != native:
            yield Problem(
                self.path,
                f"{self.path}: {self.size[0]}×{self.size[1]} pixels (height × width) found, "
                f"{expected} {native[0]}×{native[1]}; resize the file or remove it",
            )
        if self.fault:
            yield Problem(self.path, self.fault)


def common_size(looks: Iterable[Look]) -> Size | None:
    """The (height, width) that most have: a single odd one must not condemn all others."""
    sizes = Counter(look.size for look in looks if look.size)
    return sizes.most_common(1)[0][0] if sizes else None


def probe(
    paths: Sequence[Path], native: Size | None, *, deep: bool = False, progress: Progress | None = None
) -> list[Problem]:
    """Look at every image file: header and structure, and with `deep` all pixels.

    Args:
        native: the (height, width) that all must have, that of the ledger's frames; None: the most common.
    """
    steps = (decode,) if deep else ()
    looks = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        for look in workers.map(lambda path: Look.at(path, steps), paths):
            looks.append(look)
            if progress:
                progress(1)
    expected = "the frames of the ledger have" if native else "most images have"
    native = native or common_size(looks)
    return [problem for look in looks for problem in look.problems(native, expected)]


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
    return text.getvalue().encode("utf-8", "backslashreplace").decode()  # a name may be no UTF-8


def quarantined(text: str) -> dict[str, str]:
    """The files of a quarantine and their reasons. Raises ValueError where it is none."""
    rows = list(csv.reader(io.StringIO(text)))
    if rows[:1] != [["file", "reason"]] or any(len(row) != 2 for row in rows):
        raise ValueError("no columns file, reason")
    return {row[0]: row[1] for row in rows[1:]}
