"""Trees, poles, lights and signs along the road, each drawn at (x, z) metres."""

import math

import numpy as np

from meal_gpu.data.dataset import Color
from meal_gpu.data.street.canvas import Canvas, shade

_STEEL: Color = (118, 120, 122)


def tree(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A tree of 5 to 9 m with a leafy crown."""
    tall, reach = float(rng.uniform(5, 9)), float(rng.uniform(1.3, 2.2))
    green: Color = (int(rng.integers(45, 95)), int(rng.integers(85, 130)), int(rng.integers(30, 55)))
    c.upright((x - 0.16, x + 0.16), (0, tall * 0.6), z, "vegetation", (88, 70, 52))
    for i in range(26):
        angle, out = rng.uniform(0, 2 * math.pi), reach * math.sqrt(rng.uniform(0.0, 1.0))
        at = (x + out * math.cos(angle), tall * 0.72 + out * 0.9 * math.sin(angle), z)
        size = float(rng.uniform(0.45, 0.85))
        # Leaves drawn later lie on top: begin dark, end in the sun.
        c.ellipse(
            at, (size, size * 0.8), "vegetation", shade(green, 0.55 + 0.6 * i / 25 + rng.uniform(-0.1, 0.1))
        )


def bush(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A bush of about 1.2 m."""
    green: Color = (int(rng.integers(50, 90)), int(rng.integers(95, 125)), int(rng.integers(35, 60)))
    for i in range(8):
        at = (x + float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.35, 0.85)), z)
        c.ellipse(at, (0.5, 0.42), "vegetation", shade(green, 0.65 + 0.06 * i))


def lamp(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A street lamp whose arm reaches over the road."""
    tall = float(rng.uniform(5.5, 7.5))
    arm = -math.copysign(1.4, x)
    c.line([(x, 0, z), (x, tall, z), (x + arm, tall + 0.25, z)], 0.13, "pole", _STEEL)
    c.upright((x + arm - 0.3, x + arm + 0.3), (tall + 0.12, tall + 0.28), z, "pole", (190, 190, 180))


def traffic_light(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A signal head with one lamp lit, on a pole."""
    c.line([(x, 0, z), (x, 3.5, z)], 0.13, "pole", _STEEL)
    c.upright((x - 0.25, x + 0.25), (2.45, 3.75), z, "traffic light", (28, 30, 30))
    lit = int(rng.integers(3))
    for i, color in enumerate(((240, 40, 35), (250, 190, 40), (50, 220, 110))):
        c.ellipse((x, 3.5 - 0.4 * i, z), (0.16, 0.16), None, color if i == lit else shade(color, 0.22))


def sign(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A round, triangular or square sign on a pole."""
    tall = float(rng.uniform(2.3, 2.9))
    c.line([(x, 0, z), (x, tall, z)], 0.09, "pole", _STEEL)
    name, white = "traffic sign", (238, 238, 234)
    match int(rng.integers(4)):
        case 0:
            c.ellipse((x, tall, z), (0.42, 0.42), name, (200, 25, 30))
            c.ellipse((x, tall, z), (0.3, 0.3), None, white)
            c.upright((x - 0.15, x + 0.15), (tall - 0.1, tall + 0.1), z, None, (30, 30, 30))
        case 1:
            c.face(
                [(x - 0.5, tall - 0.35, z), (x + 0.5, tall - 0.35, z), (x, tall + 0.5, z)],
                name,
                (200, 25, 30),
            )
            c.face([(x - 0.3, tall - 0.24, z), (x + 0.3, tall - 0.24, z), (x, tall + 0.26, z)], None, white)
        case 2:
            c.upright((x - 0.4, x + 0.4), (tall - 0.4, tall + 0.4), z, name, (30, 80, 170))
            c.upright((x - 0.1, x + 0.1), (tall - 0.26, tall + 0.26), z, None, white)
        case _:
            side = 0.55
            points = [(x - side, tall, z), (x, tall - side, z), (x + side, tall, z), (x, tall + side, z)]
            c.face(points, name, (240, 240, 236))
            c.face(
                [(x + (px - x) * 0.7, tall + (py - tall) * 0.7, z) for px, py, _ in points],
                None,
                (245, 190, 30),
            )


def bin_(c: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A rubbish bin: void, as all small things are in Cityscapes."""
    color: Color = (int(rng.integers(40, 90)), int(rng.integers(60, 110)), int(rng.integers(50, 90)))
    c.upright((x - 0.3, x + 0.3), (0, 1.0), z, "static", color)
    c.upright((x - 0.34, x + 0.34), (0.95, 1.08), z, "static", shade(color, 0.7))
