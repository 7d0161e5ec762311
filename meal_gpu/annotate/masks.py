"""Plain masks from any tool: NAME.png for each crop, pixels are train ids, 255 is void."""

import io
import struct
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from meal_gpu.annotate.asked import VOID, Answer, Asked, Item
from meal_gpu.annotate.pictures import Pixels, read_mask
from meal_gpu.errors import DataError
from meal_gpu.images.headers import SUFFIXES

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TABLES = ("query.csv", "query.jsonl", "query.parquet")


def read(files: Mapping[str, bytes], asked: Asked) -> Iterator[Answer]:
    """The mask in every .png among `files`, of the size of its crop or of its patch alone.

    A name is that of a crop as it stands, or without the first of its folders, one after another. Where the
    table of `meal_gpu.annotate.tables` lies among the files, only `masks` beside it is read, for `images` and
    `prelabels` beside it are not the annotator's. Other kinds of files are left out, but for other images.

    Raises:
        DataError: a table, but no masks beside it.
    """
    for name, content in _masks(files).items():
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            continue
        crop = _crop(path.with_suffix(""), asked)
        item = asked.by_name.get(crop)
        if item is None:
            yield Answer(crop, None, "not asked for in this query")
        elif suffix != ".png":
            yield Answer(crop, None, f"a {suffix} image; masks are 8-bit grey or palette PNG files of ids")
        else:
            try:
                yield Answer(crop, _decoded(content, item, asked))
            except DataError as error:
                yield Answer(crop, None, str(error))


def _masks(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    tables = [PurePosixPath(name) for name in files if PurePosixPath(name).name in _TABLES]
    if not tables:
        return files
    folders = {table.parent / "masks" for table in tables}
    chosen = {name: files[name] for name in files if folders & set(PurePosixPath(name).parents)}
    if not chosen:
        raise DataError(f"no file in {sorted(folders)[0]}/; finished masks go there")
    return chosen


def _crop(path: PurePosixPath, asked: Asked) -> str:
    """The name of the crop that a file is of; of no crop, all of `path`."""
    for start in range(len(path.parts)):
        if asked.knows(name := asked.spelled("/".join(path.parts[start:]))):
            return name
    return path.as_posix()


def _decoded(content: bytes, item: Item, asked: Asked) -> Pixels:
    crop = asked.crop(item)
    sizes = [(crop.height, crop.width), (item.box.height, item.box.width)]
    if not content.startswith(_SIGNATURE) or len(content) < 24:
        raise DataError("truncated, damaged or no PNG; masks are 8-bit grey or palette PNG files of ids")
    width, height = struct.unpack(">II", content[16:24])
    if (height, width) not in sizes:
        expected = " (with context) or ".join(f"{h}×{w}" for h, w in dict.fromkeys(sizes))
        raise DataError(f"{height}×{width} pixels (height × width) found, {expected} expected")
    labels = read_mask(io.BytesIO(content), (height, width))
    unknown = labels[(labels >= len(asked.classes)) & (labels != VOID)]
    if len(unknown):
        raise DataError(
            f"unknown class id {unknown.min()}; known: 0 to {len(asked.classes) - 1}, {VOID} is void"
        )
    return labels
