"""Makers of image and mask files that something is wrong with, or looks wrong, of 24×32 pixels."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)


def scene(seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3))
    return Image.fromarray(np.kron(coarse, np.ones((4, 4, 1))).astype(np.uint8))


def png(width: int, height: int, depth: int, color: int, rows: bytes, interlace: int = 0) -> bytes:
    """A PNG file of any kind from its unfiltered rows, each with its leading 0."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


def cut(path: Path) -> None:
    scene().save(path)
    os.truncate(path, path.stat().st_size - 40)


def damaged(path: Path) -> None:
    """Whole by its structure, but of pixels that cannot be decoded."""
    scene().save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 8
    content[place : place + 40] = bytes(40)
    path.write_bytes(bytes(content))


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    scene().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def wide(path: Path) -> None:
    """16 bits in each of three channels: 257 times the scene."""
    pixels = np.asarray(scene()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    path.write_bytes(png(SIZE[1], SIZE[0], 16, 2, rows))


def turned(path: Path) -> None:
    """A PNG or WebP with the orientation of a JPEG."""
    exif = Image.Exif()
    exif[274] = 6
    scene().save(path, exif=exif)


def interlaced(path: Path) -> None:
    pixels = np.asarray(scene())
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )
    path.write_bytes(png(SIZE[1], SIZE[0], 8, 2, rows, interlace=1))


def previewed(path: Path) -> None:
    """Cut off, behind a preview that is a whole JPEG with an end of its own."""
    scene().save(path)
    content = path.read_bytes()
    path.write_bytes(b"\xff\xd8\xff\xe5" + struct.pack(">H", 2 + len(content)) + content + content[2:-40])


def stereo(path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    first, second = (scene(seed).transpose(Image.Transpose.ROTATE_90) for seed in (0, 1))
    first.save(path, format="MPO", save_all=True, append_images=[second], exif=exif)


def animated(path: Path) -> None:
    scene().save(path, save_all=True, append_images=[scene(1)])


def linked(path: Path) -> None:
    path.symlink_to("nowhere.png")


def looped(path: Path) -> None:
    path.symlink_to(path.name)


Maker = Callable[[Path], object]
# Name, maker, a pattern of the error; whether only decoding finds it
NAMED: dict[str, tuple[str, Maker, str, bool]] = {
    "a JPEG cut off in the middle": ("x.jpg", cut, r"truncated or damaged \(its end is missing\)", False),
    "a JPEG cut off behind a whole preview": (
        "x.jpg", previewed, r"truncated or damaged \(its end is missing\)", False,
    ),
    "a PNG cut off in the middle": ("x.png", cut, r"truncated or damaged \(its end is missing\)", False),
    "a PNG whose pixels are damaged": ("x.png", damaged, "truncated or damaged", True),
    "an empty file": ("x.png", Path.touch, "not a readable image", False),
    "a text file called x.png": ("x.png", lambda p: p.write_text("hello"), "not a readable image", False),
    "a GIF called x.png": (
        "x.png", lambda p: scene().save(p, format="GIF"), "of the format GIF, which is not read", False,
    ),
    "a PNG that its EXIF turns": ("x.png", turned, r"its EXIF turns it \(orientation 6\)", False),
    "a WebP that its EXIF turns": ("x.webp", turned, r"its EXIF turns it \(orientation 6\)", False),
    "a TIFF of grey with transparency": (
        "x.tif", lambda p: scene().convert("LA").save(p), "TIFF file of LA pixels", False,
    ),
    "a 16-bit grey PNG": (
        "x.png", lambda p: Image.fromarray(np.full(SIZE, 999, np.uint16)).save(p), "more than 8 bits", False,
    ),
    "a TIFF of floats": (
        "x.tif", lambda p: Image.fromarray(np.zeros(SIZE, np.float32)).save(p), "of more than 8 bits", False,
    ),
    "an animated PNG": ("x.png", animated, "holds 2 frames", False),
    "an animated WebP": ("x.webp", animated, "holds 2 frames", False),
    "a TIFF of two pages": ("x.tiff", animated, "holds 2 frames", False),
    "an image of 1×1 pixels": (
        "x.png", lambda p: Image.new("RGB", (1, 1)).save(p), r"1×1 pixels .* found, .* 24×32", False,
    ),
    "a PNG of a few bytes that claims 30,000×30,000 pixels": (
        "x.png", lambda p: p.write_bytes(png(30_000, 30_000, 8, 2, b"")), "claimed|decompression bomb", False,
    ),
    "a link to a file that is gone": ("x.png", linked, r"a link to nowhere\.png, which is not there", False),
    "a link to itself": ("x.png", looped, "a link to x.png", False),
    "a named pipe": ("x.png", os.mkfifo, "no plain file", False),
}  # fmt: skip
# Read as people expect: the pixels of Pillow
READ: dict[str, tuple[str, Maker]] = {
    "a PNG called x.jpg": ("x.jpg", lambda p: scene().save(p, format="PNG")),
    "a grey image": ("x.png", lambda p: scene().convert("L").save(p)),
    "an image with transparency": ("x.png", lambda p: scene().convert("RGBA").save(p)),
    "grey with transparency": ("x.png", lambda p: scene().convert("LA").save(p)),
    "a palette image": ("x.png", lambda p: scene().quantize(16).save(p)),
    "a 1-bit image": ("x.png", lambda p: scene().convert("1").save(p)),
    "a 16-bit RGB PNG": ("x.png", wide),
    "a progressive JPEG": ("x.jpg", lambda p: scene().save(p, progressive=True)),
    "a CMYK JPEG": ("x.jpg", lambda p: scene().convert("CMYK").save(p)),
    "a JPEG that its EXIF turns": ("x.jpg", rotated),
    "a JPEG with bytes behind its end": (
        "x.jpg", lambda p: (scene().save(p), p.write_bytes(p.read_bytes() + bytes(10_000))),
    ),
    "a JPEG of a camera that writes a second image behind the first, turned": ("x.jpg", stereo),
    "an interlaced PNG": ("x.png", interlaced),
    "a suffix in capitals": ("X.PNG", lambda p: scene().save(p)),
    "a compressed TIFF": ("x.TIF", lambda p: scene().save(p, compression="tiff_lzw")),
    "a name with a line break": ("a\nb.png", lambda p: scene().save(p)),
}  # fmt: skip
