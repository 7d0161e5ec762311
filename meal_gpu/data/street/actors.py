"""Things that stand or move in the street, each drawn at (x, z) metres on the road."""

import numpy as np

from meal_gpu.data.dataset import Color
from meal_gpu.data.street.canvas import Canvas, shade

_TYRE: Color = (25, 25, 27)
_GLASS: Color = (58, 70, 84)
_CAR_COLORS: tuple[Color, ...] = (
    (190, 192, 196), (35, 36, 40), (235, 236, 238), (150, 20, 24), (30, 60, 130), (110, 115, 120),
    (60, 90, 70),
)  # fmt: skip
_CLOTHES: tuple[Color, ...] = (
    (180, 40, 45), (40, 60, 140), (30, 30, 35), (200, 190, 170), (60, 110, 70), (210, 160, 40), (120, 60, 120)
)  # fmt: skip
_SKIN: tuple[Color, ...] = ((224, 178, 148), (190, 140, 110), (120, 80, 60))


def _pick(colors: tuple[Color, ...], rng: np.random.Generator) -> Color:
    return shade(colors[int(rng.integers(len(colors)))], float(rng.uniform(0.85, 1.15)))


def _inner(x: float, width: float) -> float | None:
    """The x of the long side that the camera sees, or None when it sees neither."""
    if x - width / 2 > 0:
        return x - width / 2
    return x + width / 2 if x + width / 2 < 0 else None


def _box(
    c: Canvas, name: str, x: float, z: float, size: tuple[float, float, float], low: float, color: Color
) -> None:
    """A box of (width, height, length) from `low` metres up: top, long side, end."""
    width, height, length = size
    left, right = x - width / 2, x + width / 2
    top = low + height
    c.face(
        [(left, top, z), (right, top, z), (right, top, z + length), (left, top, z + length)],
        name, shade(color, 1.12),
    )  # fmt: skip
    side = _inner(x, width)
    if side is not None:
        c.face(
            [(side, low, z), (side, low, z + length), (side, top, z + length), (side, top, z)],
            name, shade(color, 0.72),
        )  # fmt: skip
    c.upright((left, right), (low, top), z, name, color)


def _wheels(c: Canvas, name: str, x: float, z: float, width: float, length: float, radius: float) -> None:
    side = _inner(x, width)
    if side is not None:
        for along in (0.18, 0.8):
            at = z + length * along
            c.face(
                [(side, 0, at - radius), (side, 0, at + radius), (side, 2 * radius, at + radius * 0.7),
                 (side, 2 * radius, at - radius * 0.7)],
                name, _TYRE,
            )  # fmt: skip
    for left in (x - width / 2 + 0.05, x + width / 2 - 0.3):
        c.upright((left, left + 0.25), (0.0, radius * 1.5), z, name, _TYRE)


def car(c: Canvas, x: float, z: float, rng: np.random.Generator, *, oncoming: bool = False) -> None:
    """A passenger car, 1.8 × 1.45 × 4.2 m."""
    color = _pick(_CAR_COLORS, rng)
    width, length, tall = 1.8, 4.2, float(rng.uniform(1.38, 1.6))
    left, right = x - width / 2, x + width / 2
    c.shadow((left - 0.15, right + 0.15), (z - 0.15, z + length))
    _wheels(c, "car", x, z, width, length, 0.32)
    _box(c, "car", x, z, (width, 0.62, length), 0.25, color)
    front, back = (z + 1.1, z + 3.9) if oncoming else (z + 0.25, z + 3.2)
    side = _inner(x, width)
    if side is not None:
        inset = 0.12 if side > 0 else -0.12
        c.face(
            [(side, 0.87, front), (side, 0.87, back), (side + inset, tall, back - 0.5),
             (side + inset, tall, front + 0.3)],
            "car", shade(color, 0.66),
        )  # fmt: skip
        c.face(
            [(side, 0.93, front + 0.25), (side, 0.93, back - 0.2), (side + inset, tall - 0.1, back - 0.6),
             (side + inset, tall - 0.1, front + 0.5)],
            "car", _GLASS,
        )  # fmt: skip
    for name, low, high, inset, paint in (
        ("car", 0.87, tall, 0.0, shade(color, 0.95)),
        (None, 0.93, tall - 0.09, 0.1, _GLASS),
    ):
        c.face(
            [(left + inset, low, front), (right - inset, low, front),
             (right - inset - 0.2, high, front + 0.3), (left + inset + 0.2, high, front + 0.3)],
            name, paint,
        )  # fmt: skip
    light: Color = (246, 240, 214) if oncoming else (196, 24, 28)
    for at in (left + 0.08, right - 0.4):
        c.upright((at, at + 0.32), (0.6, 0.76), z, None, light)
    c.upright((x - 0.25, x + 0.25), (0.42, 0.54), z, None, (225, 225, 225))


def truck(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A box truck seen from behind, 2.5 × 3.5 × 8 m."""
    color = _pick(((215, 215, 210), (160, 170, 180), (180, 120, 40), (90, 120, 160)), rng)
    c.shadow((x - 1.4, x + 1.4), (z - 0.2, z + 8))
    _wheels(c, "truck", x, z, 2.4, 8.0, 0.5)
    _box(c, "truck", x, z, (2.3, 0.45, 8.0), 0.5, (60, 60, 64))
    _box(c, "truck", x, z, (2.5, 2.6, 6.0), 0.9, color)
    for at in (x - 1.2, x - 0.02, x + 1.16):
        c.upright((at, at + 0.05), (0.9, 3.5), z, None, shade(color, 0.6))
    c.upright((x - 1.2, x - 0.9), (0.6, 0.8), z, None, (190, 30, 30))
    c.upright((x + 0.9, x + 1.2), (0.6, 0.8), z, None, (190, 30, 30))


def _windows(
    c: Canvas, x: float, z: float, width: float, length: float, low: float, high: float, step: float
) -> None:
    side = _inner(x, width)
    if side is None:
        return
    at = z + 0.4
    while at + step < z + length:
        c.face(
            [(side, low, at), (side, low, at + step - 0.2), (side, high, at + step - 0.2), (side, high, at)],
            None, _GLASS,
        )  # fmt: skip
        at += step


def bus(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A city bus, 2.55 × 3 × 11 m."""
    color = _pick(((225, 180, 30), (180, 30, 35), (230, 225, 210), (40, 110, 170)), rng)
    c.shadow((x - 1.4, x + 1.4), (z - 0.2, z + 11))
    _wheels(c, "bus", x, z, 2.5, 11.0, 0.48)
    _box(c, "bus", x, z, (2.55, 2.7, 11.0), 0.3, color)
    _windows(c, x, z, 2.55, 11.0, 1.3, 2.5, 1.4)
    c.upright((x - 1.1, x + 1.1), (1.4, 2.5), z, None, _GLASS)
    c.upright((x - 0.8, x + 0.8), (2.62, 2.9), z, None, (25, 25, 20))
    c.upright((x - 0.4, x + 0.4), (2.68, 2.84), z, None, (250, 170, 40))
    for at in (x - 1.2, x + 0.9):
        c.upright((at, at + 0.3), (0.5, 0.7), z, None, (200, 40, 30))


def train(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A tram, 2.6 × 3.4 × 28 m."""
    color = _pick(((215, 215, 205), (200, 60, 40), (60, 130, 90)), rng)
    for rail in (x - 0.72, x + 0.72):
        c.face(
            [(rail - 0.05, 0, 3), (rail + 0.05, 0, 3), (rail + 0.05, 0, 120), (rail - 0.05, 0, 120)],
            None, (95, 92, 92),
        )  # fmt: skip
    c.shadow((x - 1.4, x + 1.4), (z - 0.2, z + 28))
    _box(c, "train", x, z, (2.6, 0.7, 28.0), 0.1, (70, 72, 78))
    _box(c, "train", x, z, (2.6, 2.6, 28.0), 0.8, color)
    _windows(c, x, z, 2.6, 28.0, 1.5, 2.6, 1.9)
    c.upright((x - 1.05, x + 1.05), (1.4, 2.7), z, None, (40, 48, 58))
    c.upright((x - 0.6, x + 0.6), (2.85, 3.15), z, None, (250, 190, 60))
    for at in (x - 1.1, x + 0.85):
        c.upright((at, at + 0.25), (0.9, 1.1), z, None, (250, 245, 225))


def person(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A standing or walking person of about 1.7 m."""
    tall = float(rng.uniform(1.5, 1.9))
    coat, trousers, skin = _pick(_CLOTHES, rng), _pick(_CLOTHES, rng), _pick(_SKIN, rng)
    step = float(rng.uniform(0.0, 0.28))
    hip, neck = 0.5 * tall, 0.84 * tall
    for foot in (-step, step):
        c.face(
            [(x + foot - 0.09, 0, z), (x + foot + 0.09, 0, z), (x + 0.15, hip, z), (x - 0.15, hip, z)],
            "person", shade(trousers, 0.8),
        )  # fmt: skip
    c.face(
        [(x - 0.19, hip - 0.08, z), (x + 0.19, hip - 0.08, z), (x + 0.25, neck, z), (x - 0.25, neck, z)],
        "person",
        coat,
    )
    for arm in (-0.27, 0.27):
        c.line([(x + arm, neck - 0.05, z), (x + arm * 1.3, hip + 0.02, z)], 0.12, "person", shade(coat, 0.8))
    c.ellipse((x, 0.92 * tall, z), (0.12, 0.15), "person", skin)
    c.ellipse((x, 0.955 * tall, z), (0.125, 0.1), "person", shade(trousers, 0.5))


def bicycle(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A bicycle seen from the side, 1.75 m long."""
    color = _pick(_CLOTHES, rng)
    # Like a person would label it: the outline is filled, spokes and gaps included.
    c.face(
        [(x - 0.55, 0.3, z), (x + 0.5, 0.3, z), (x + 0.38, 1.0, z), (x - 0.2, 0.95, z)],
        "bicycle",
        (96, 94, 92),
    )
    for wheel in (-0.55, 0.55):
        c.ellipse((x + wheel, 0.34, z), (0.34, 0.34), "bicycle", _TYRE)
        c.ellipse((x + wheel, 0.34, z), (0.27, 0.27), "bicycle", (118, 116, 114))
    frame = [(x - 0.55, 0.34, z), (x - 0.15, 0.85, z), (x + 0.4, 0.85, z), (x, 0.34, z), (x - 0.55, 0.34, z)]
    c.line(frame, 0.07, "bicycle", color)
    c.line([(x + 0.55, 0.34, z), (x + 0.4, 1.0, z), (x + 0.25, 1.05, z)], 0.07, "bicycle", color)
    c.line([(x, 0.34, z), (x - 0.18, 0.95, z)], 0.07, "bicycle", color)


def motorcycle(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A motorcycle seen from the side, 2 m long."""
    color = _pick(_CAR_COLORS, rng)
    for wheel in (-0.68, 0.68):
        c.ellipse((x + wheel, 0.32, z), (0.32, 0.32), "motorcycle", _TYRE)
        c.ellipse((x + wheel, 0.32, z), (0.16, 0.16), None, (150, 150, 155))
    c.face(
        [(x - 0.6, 0.3, z), (x + 0.55, 0.3, z), (x + 0.7, 0.8, z), (x + 0.3, 1.0, z), (x - 0.1, 0.78, z),
         (x - 0.95, 0.85, z)],
        "motorcycle", color,
    )  # fmt: skip
    c.face(
        [(x - 0.9, 0.82, z), (x - 0.05, 0.78, z), (x - 0.05, 0.9, z), (x - 0.9, 0.95, z)], "motorcycle", _TYRE
    )
    c.line([(x + 0.68, 0.32, z), (x + 0.4, 1.1, z), (x + 0.2, 1.12, z)], 0.08, "motorcycle", (160, 160, 165))
    c.ellipse((x + 0.62, 0.9, z), (0.1, 0.1), None, (250, 245, 220))


def rider(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """Somebody who sits on a two-wheeler at (x, z), leaning forward."""
    coat, trousers = _pick(_CLOTHES, rng), _pick(_CLOTHES, rng)
    c.line([(x - 0.18, 1.0, z), (x + 0.15, 0.72, z), (x, 0.32, z)], 0.16, "rider", shade(trousers, 0.8))
    c.face([(x - 0.34, 0.95, z), (x + 0.02, 0.9, z), (x + 0.28, 1.48, z), (x - 0.06, 1.56, z)], "rider", coat)
    c.line([(x + 0.14, 1.42, z), (x + 0.34, 1.06, z)], 0.11, "rider", shade(coat, 0.8))
    c.ellipse((x + 0.18, 1.68, z), (0.13, 0.16), "rider", _pick(_SKIN, rng))
    c.ellipse((x + 0.17, 1.76, z), (0.15, 0.1), "rider", _pick(_CLOTHES, rng))
