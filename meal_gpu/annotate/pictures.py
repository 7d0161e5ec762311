"""Frames and masks of ids, as they are read from files."""

import io
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meal_gpu.errors import DataError
from meal_gpu.images.content import contents, is_url, local
from meal_gpu.images.headers import FORMATS, not_ids, upright

Pixels = NDArray[np.uint8]


def read_frame(file: str, size: tuple[int, int] | None, digest: str = "") -> Pixels:
    """A frame, RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises:
        DataError: it is missing, damaged or, where they are given, of another size or SHA-256.
    """
    if not is_url(file) and not Path(file).exists():
        raise DataError(
            f"{file}: no such image file; it was there when it was queried: bring it back, or name where the "
            "frames lie now as --images"
        )
    content = contents([file])[0] if is_url(file) else local(Path(file))
    require_same(file, sha256(content).hexdigest(), digest)
    return decoded(content, file, size)


def decoded(content: bytes, file: str, size: tuple[int, int] | None) -> Pixels:
    """The frame that the bytes of `file` are, as `read_frame`."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = np.asarray(upright(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: not a readable image ({error}); replace the file") from error
    if size is not None and pixels.shape[:2] != size:
        raise DataError(
            f"{file}: {pixels.shape[0]}×{pixels.shape[1]} pixels (height × width) found, "
            f"{size[0]}×{size[1]} when it was queried; restore the file"
        )
    return pixels


def require_same(file: str, found: str, digest: str) -> None:
    """Raises DataError where the SHA-256 of a frame is another one than that of its query."""
    if digest not in ("", found):
        raise DataError(
            f"{file}: no longer the file that was queried (SHA-256 {found[:12]}…, then {digest[:12]}…), so "
            "that predictions may be of another picture; restore it, name with --images where it lies now, "
            "or make the query anew"
        )


def read_mask(source: Path | BinaryIO, size: tuple[int, int] | None) -> Pixels:
    """An 8-bit grey or palette PNG of train ids, uint8 [h, w], from a path or a binary file.

    The header is looked at first, so that no pixels are decoded from a file of another size.

    Raises:
        DataError: it is missing, damaged, of another kind or, where `size` is given, of another size; the
            caller says which file.
    """
    try:
        stream = source.open("rb") if isinstance(source, Path) else nullcontext(source)
        with stream as file:
            head = file.read(26)
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
            if size is not None and (image.height, image.width) != size:
                raise DataError(
                    f"{image.height}×{image.width} pixels (height × width) found, "
                    f"{size[0]}×{size[1]} expected"
                )
            other = not_ids(head) if image.format == "PNG" else f"a {image.mode} {image.format}"
            if other is not None:
                raise DataError(f"{other} found; masks are 8-bit grey or palette PNG files of ids")
            return np.array(image, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError("no such mask") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"truncated or damaged ({error})") from error
