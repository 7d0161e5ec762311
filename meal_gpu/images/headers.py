"""What an image file says about itself, read without decoding its pixels."""

import contextlib
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
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_JPEG = ("JPEG", "MPO")
FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is decoded; of others some run programs (Ghostscript for PostScript)."""
_UNLIKE = {("TIFF", "1"), ("TIFF", "LA"), ("TIFF", "LAB")}  # whose pixels the two decoders do not agree on

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
        DataError: as `image_size`; the file is cut off (PNG, JPEG), animated, of a kind that the decoder does
            not read, or of more than 8 bits where decoders differ (grey and float).
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: the name is not valid UTF-8; rename the file") from None
    size, mode, frames, form, turn = _header(path)
    if form not in FORMATS:
        raise DataError(
            f"{path}: of the format {form}, which is not read; save it as PNG, JPEG, BMP, TIFF or WebP"
        )
    if frames > 1:
        raise DataError(f"{path}: holds {frames} frames, and an image has one; split it into files")
    if mode.startswith(("I", "F")):
        raise DataError(
            f"{path}: {mode} pixels, of more than 8 bits, and images are of 8; convert the file, with the "
            "scaling that is right for it"
        )
    if (form, mode) in _UNLIKE:
        raise DataError(f"{path}: a {form} file of {mode} pixels, on which decoders differ; save it as RGB")
    if form == "JPEG" and not _whole_jpeg(path):
        raise DataError(_CUT.format(path))
    if form == "PNG":
        turn = _png_orientation(path)
    if turn != 1 and form in ("PNG", "WEBP"):
        raise DataError(
            f"{path}: its EXIF turns it (orientation {turn}), which decoders do or do not; turn the pixels "
            "and save it without"
        )
    return size


def orientation(image: Image.Image) -> int:
    """1 … 8, how the decoder turns the pixels of an open image: the EXIF block says it, and nothing else.

    Pillow's `getexif` would take what XMP says where the block says nothing.
    """
    return _orientation(image.info.get("exif", b""))


def upright(image: Image.Image) -> Image.Image:
    """An open image turned as the decoder turns it: a JPEG as its `orientation` says, others not at all."""
    turn = orientation(image) if image.format in _JPEG else 1
    return image if turn == 1 else image.transpose(_TURNS[turn])


def _why(path: Path, error: OSError) -> str:
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there; mend or remove it"  # noqa: PTH115
    return "no such image file" if isinstance(error, FileNotFoundError) else str(error.strerror)


def _header(path: Path) -> tuple[Size, str, int, str, int]:
    """Size, Pillow's mode, frames, Pillow's format, EXIF orientation (of JPEG and WebP, else 1)."""
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
                turn = orientation(image) if image.format in (*_JPEG, "WEBP") else 1
                frames = int(getattr(image, "n_frames", 1))
                mode, form = image.mode, str(image.format)
    except DecompressionBombError as error:
        raise DataError(f"{path}: {error}; at most {LIMIT} pixels are read") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: {error.strerror}; make it readable or remove it") from error
        raise DataError(f"{path}: not a readable image ({error}); replace the file") from error
    if width * height > LIMIT:
        raise DataError(
            f"{path}: {height}×{width} pixels claimed (height × width), at most {LIMIT} in all are read; "
            "replace the file or cut it into parts"
        )
    if form == "MPO":  # of cameras: a JPEG with previews or depth behind it, which no decoder looks at
        frames, form = 1, "JPEG"
    size = (width, height) if turn in _TURNED and form == "JPEG" else (height, width)
    return size, mode, frames, form, turn


def _orientation(block: bytes) -> int:
    exif = Image.Exif()
    with contextlib.suppress(SyntaxError, struct.error, ValueError):
        exif.load(block)
    turn = exif.get(ExifTags.Base.Orientation)
    return turn if isinstance(turn, int) and 1 < turn <= 8 else 1


def _png_orientation(path: Path) -> int:
    """Walk its chunks to IEND, the last one, skipping the pixels. Raises DataError where that is missing."""
    turn = 1
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        place = len(_PNG_MAGIC)
        while place + 12 <= end:
            file.seek(place)
            length, kind = struct.unpack(">I4s", file.read(8))
            place += 12 + int(length)
            if kind == b"eXIf" and place <= end:
                turn = _orientation(file.read(length))
            if kind == b"IEND" and place <= end:
                return turn
    raise DataError(_CUT.format(path))


def _whole_jpeg(path: Path) -> bool:
    """Whether the marker of the end comes behind the beginning of the pixels; more may follow it.

    What precedes the pixels is walked over: previews in it have ends of their own.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        place = 2
        while place + 4 <= end:
            file.seek(place)
            lead, kind, length = struct.unpack(">BBH", file.read(4))
            if lead != 0xFF or kind == _SCAN:
                break
            place += 1 if kind == 0xFF else 2 if kind in _BARE else 2 + length
        for start in (max(place, end - _JPEG_TAIL), place):  # all of it only where much follows the end
            file.seek(start)
            if b"\xff\xd9" in file.read():
                return True
    return False


_CUT = "{}: truncated or damaged (its end is missing); replace the file"
_JPEG_TAIL = 4096
_SCAN = 0xDA
_BARE = {0x01, *range(0xD0, 0xD8)}  # markers without a length


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
    if (other := not_ids(head)) is not None:
        raise DataError(
            f"{path}: {other}; labels are 8-bit grey or palette PNG files whose pixels are class ids, not "
            "colours or instances"
        )
    return _PNG_KINDS[head[25]]


def not_ids(head: bytes) -> str | None:
    """What a PNG file is, by its first 26 bytes, where its pixels are no ids as they stand: Pillow would
    stretch grey of fewer bits. None where they are.
    """
    depth, color = head[24], head[25]
    if color == 3 or (color, depth) == (0, 8):
        return None
    return f"{'an' if depth == 8 else 'a'} {depth}-bit {_PNG_KINDS.get(color, 'unknown')} PNG"
