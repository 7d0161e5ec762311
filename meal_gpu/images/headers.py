"""What an image file says about itself, read without decoding its pixels."""

import struct
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

from meal_gpu.errors import DataError

Size = tuple[int, int]
"""(height, width) in pixels."""

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of the image files that the decoder reads."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width


def image_size(path: Path) -> Size:
    """(height, width) as the decoder gives it, that is, turned as the EXIF orientation says.

    Raises:
        DataError: the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # PNG keeps its EXIF behind the pixels, so asking would read the whole file.
            exif = image.getexif() if image.format == "JPEG" else {}
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable image ({error}); replace the file") from error
    return (width, height) if exif.get(ExifTags.Base.Orientation) in _TURNED else (height, width)


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
