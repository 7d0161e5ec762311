"""Which of many image files cannot be used, found in parallel before hours are spent on them."""

import csv
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from meal_gpu.errors import DataError
from meal_gpu.images.content import aside, fetch, is_url
from meal_gpu.images.headers import Size, image_size, inspect
from meal_gpu.images.loader import decode

Progress = Callable[[int], None]
"""Called with the number of images finished since the last call."""

ON_BAD = ("stop", "skip")
"""What to do about files that cannot be used."""

_SHOWN = 5  # problems in an error
_TOGETHER = 256  # files that are fetched before they are looked at


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used.

    Attributes:
        file: its path or URL.
        message: what is wrong and how to mend it; it names the file too.
    """

    file: str
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

    file: str
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
            return cls(str(path), size, str(error))
        return cls(str(path), size, None)

    def problems(self, native: Size | None, expected: str) -> Iterator[Problem]:
        """Its own, and that its size is not `native`; `expected` says who has that."""
        if self.size and native and self.size != native:
            yield Problem(
                self.file,
                f"{self.file}: {self.size[0]}×{self.size[1]} pixels (height × width) found, "
                f"{expected} {native[0]}×{native[1]}; resize the file or remove it",
            )
        if self.fault:
            yield Problem(self.file, self.fault)


def common_size(looks: Iterable[Look]) -> Size | None:
    """The (height, width) that most have: a single odd one must not condemn all others."""
    sizes = Counter(look.size for look in looks if look.size)
    return sizes.most_common(1)[0][0] if sizes else None


def probe(
    files: Sequence[str], native: Size | None, *, deep: bool = False, progress: Progress | None = None
) -> list[Problem]:
    """Look at every image file: header and structure, and with `deep` all pixels. URLs are fetched for it.

    Args:
        native: the (height, width) that all must have, that of the ledger's frames; None: the most common.

    Raises:
        UnavailableError: the package for a URL's protocol is missing.
    """
    found = []
    for look in looks(files, (decode,) if deep else ()):
        found.append(look)
        if progress:
            progress(1)
    expected = "the frames of the ledger have" if native else "most images have"
    native = native or common_size(found)
    return [problem for look in found for problem in look.problems(native, expected)]


def looks(
    files: Sequence[str], steps: Sequence[Callable[[Path], object]] = (), *, together: int = _TOGETHER
) -> Iterator[Look]:
    """A look at each of local files and URLs, in their order; `together` of them are on the disk at once."""
    with (
        tempfile.TemporaryDirectory(prefix="meal-gpu-") as folder,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers,
    ):

        def look(place: int, file: str, content: bytes | DataError | None) -> Look:
            if isinstance(content, DataError):
                return Look(file, None, str(content))
            if content is None:
                return Look.at(Path(file), steps)
            path = aside(Path(folder), place, file)
            path.write_bytes(content)
            found = Look.at(path, steps)
            path.unlink()
            return Look(file, found.size, found.fault and found.fault.replace(str(path), file))

        for start in range(0, len(files), together):
            part = files[start : start + together]
            remote = [file for file in part if is_url(file)]
            fetched = dict(zip(remote, fetch(remote), strict=True))
            yield from workers.map(look, range(len(part)), part, [fetched.get(file) for file in part])


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
    rows.writerows([problem.file, problem.message] for problem in problems)
    return text.getvalue().encode("utf-8", "backslashreplace").decode()  # a name may be no UTF-8


def quarantined(text: str) -> dict[str, str]:
    """The files of a quarantine and their reasons. Raises ValueError where it is none."""
    rows = list(csv.reader(io.StringIO(text)))
    if rows[:1] != [["file", "reason"]] or any(len(row) != 2 for row in rows):
        raise ValueError("no columns file, reason")
    return {row[0]: row[1] for row in rows[1:]}
