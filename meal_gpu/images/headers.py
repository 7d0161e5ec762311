"""What an image file says about itself, read without decoding its pixels."""

import os
import stat
import struct
import warnings
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from meal_gpu.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of the image files that the decoder reads."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width


LIMIT = 2**27
"""Pixels of an image, at most (134 million): a file of a few bytes may claim more than any memory holds."""


def image_size(path: Path) -> Size:
    """(height, width) as the decoder gives it, that is, turned as the EXIF orientation says.

    Raises:
        DataError: the file is missing, is no plain file or no image, or claims more than `LIMIT` pixels.
    """
    return _header(path)[0]


def inspect(path: Path) -> Size:
    """`image_size` of a file that the decoder reads as people expect; its pixels are not decoded.

    Raises:
        DataError: as `image_size`; the file is cut off (PNG, JPEG), animated, or of more than 8 bits where
            decoders differ (grey and float).
    """
    size, mode, frames, form = _header(path)
    if frames > 1:
        raise DataError(f"{path}: holds {frames} frames, and an image has one; split it into files")
    if mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: {mode} pixels, of more than 8 bits, and images are of 8; convert the file, with the "
            "scaling that is right for it"
        )
    if form in _WHOLE and not _WHOLE[form](path):
        raise DataError(f"{path}: truncated or damaged (its end is missing); replace the file")
    return size


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there; mend or remove it"  # noqa: PTH115
    return "no such image file" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _header(path: Path) -> tuple[Size, str, int, str]:
    """Size, Pillow's mode, frames and format."""
    try:
        kind = os.stat(path).st_mode  # noqa: PTH116 - a pipe must not be opened: that would wait for ever
    except OSError as error:
        raise DataError(f"{path}: {_why(path, error)}") from None
    if not stat.S_ISREG(kind):
        raise DataError(f"{path}: no plain file; remove it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `LIMIT` is ours
            with Image.open(path) as image:
                width, height = image.size
                # PNG keeps its EXIF behind the pixels, so asking would read the whole file.
                exif = image.getexif() if image.format == "JPEG" else {}
                frames = int(getattr(image, "n_frames", 1))
                mode, form = image.mode, str(image.format)
    except DecompressionBombError as error:
        raise DataError(f"{path}: {error}; at most {LIMIT} pixels are read") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace the file") from error
    if width * height > LIMIT:
        raise DataError(
            f"{path}: {height}×{width} pixels claimed (height × width), at most {LIMIT} in all are read; "
            "replace the file or cut it into parts"
        )
    turned = exif.get(ExifTags.Base.Orientation) in _TURNED
    return ((width, height) if turned else (height, width)), mode, frames, form


def _whole_png(path: Path) -> bool:
    """Whether its chunks reach IEND, the last one; their content is skipped."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        place = len(_PNG_MAGIC)
        while place + 12 <= end:
            file.seek(place)
            length, kind = struct.unpack(">I4s", file.read(8))
            place += 12 + int(length)
            if kind == b"IEND":
                return place <= end
    return False


def _whole_jpeg(path: Path) -> bool:
    """Whether the marker of the end is in its last part; cameras write more behind it."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - _JPEG_TAIL))
        return b"\xff\xd9" in file.read()


_JPEG_TAIL = 4096
_WHOLE = {"PNG": _whole_png, "JPEG": _whole_jpeg}


def label_kind(path: Path) -> str:
    """How a label file stores ids: "grey" (the pixel value is the id) or "palette" (the index is).

    Raises:
        DataError: the file is missing, no PNG, or stores something else than 8-bit ids.
    """
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:
        raise DataError(f"{path}: no such label file") from None
    if len(head) < 26 or not head.startswith(_PNG_MAGIC):
        raise DataError(f"{path}: not a PNG file; labels are 8-bit PNG files whose pixels are class ids")
    depth, color = struct.unpack(">BB", head[24:26])
    if color == 3 or (color, depth) == (0, 8):
        return _PNG_KINDS[color]
    raise DataError(
        f"{path}: a {depth}-bit {_PNG_KINDS.get(color, 'unknown')} PNG; labels are 8-bit grey or palette "
        f"PNG files whose pixels are class ids, not colours or instances"
    )
