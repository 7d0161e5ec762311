"""Sky, ground and the two sides of the street."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from meal_gpu.data.dataset import Color
from meal_gpu.data.street.canvas import Canvas, mix, shade

_FAR = 160.0
_NEAR = 1.2
_LANE = 3.3
_WALLS: tuple[Color, ...] = (
    (176, 160, 138), (150, 92, 74), (196, 186, 168), (128, 124, 122), (206, 178, 120), (142, 148, 156)
)  # fmt: skip


@dataclass(frozen=True)
class Street:
    """Where things lie: x in metres of the kerbs and of the lines the buildings stand on."""

    left: float
    right: float
    walk: float
    green: float
    facade_left: float
    facade_right: float
    parking_left: bool
    parking_right: bool

    @classmethod
    def choose(cls, rng: np.random.Generator) -> "Street":
        """A random street."""
        parking_left, parking_right = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
        left = -1.5 * _LANE - (2.2 if parking_left else 0.2)
        right = 0.5 * _LANE + (2.2 if parking_right else 0.4)
        walk = float(rng.uniform(1.8, 3.2))
        green = float(rng.uniform(1.5, 4.0)) if rng.random() < 0.55 else 0.0
        return cls(
            left, right, walk, green, left - walk - green, right + walk + green, parking_left, parking_right
        )


def draw_backdrop(c: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Everything that stands still and lies behind the rest."""
    _sky(c, rng)
    _skyline(c, rng)
    _ground(c, street, rng)
    for line in (street.facade_left, street.facade_right):
        _side(c, line, rng)


def _sky(c: Canvas, rng: np.random.Generator) -> None:
    zenith: Color = mix((88, 132, 190), (170, 178, 188), float(rng.uniform(0, 1)))
    rows = 48
    bottom = c.horizon + 2
    for i in range(rows):
        v = bottom * i / rows
        band = [(0.0, v), (float(c.width), v), (float(c.width), bottom), (0.0, bottom)]
        c.polygon(band, "sky", mix(zenith, c.haze, (i / (rows - 1)) ** 0.8))
    for _ in range(int(rng.integers(0, 7))):
        u, v = float(rng.uniform(-0.1, 1.1)) * c.width, float(rng.uniform(0.02, 0.6)) * c.horizon
        for _ in range(6):
            a, b = float(rng.uniform(0.02, 0.07)) * c.width, float(rng.uniform(0.008, 0.02)) * c.height
            du, dv = float(rng.normal(0, 0.04)) * c.width, float(rng.normal(0, 0.008)) * c.height
            turn = np.linspace(0, 2 * np.pi, 20)
            ring = [(u + du + a * float(np.cos(t)), v + dv + b * float(np.sin(t))) for t in turn]
            c.polygon(ring, None, mix(c.haze, (250, 250, 250), float(rng.uniform(0.3, 0.7))))


def _skyline(c: Canvas, rng: np.random.Generator) -> None:
    x = -90.0
    while x < 90.0:
        width = float(rng.uniform(6, 18))
        if rng.random() < 0.5:
            high = float(rng.uniform(8, 20))
            c.upright(
                (x, x + width), (-1.0, high), _FAR + 20, "building", _WALLS[int(rng.integers(len(_WALLS)))]
            )
        else:
            for at in np.arange(x, x + width, 3.0):
                radius = float(rng.uniform(3, 6))
                c.ellipse((float(at), 2.0, _FAR + 10), (radius, radius), "vegetation", (70, 95, 60))
        x += width


def _strip(c: Canvas, x: tuple[float, float], name: str | None, color: Color) -> None:
    """A strip of ground along the street, in pieces so that its far end lies in haze."""
    edges = [_NEAR, 4, 8, 14, 22, 34, 50, 75, 110, _FAR]
    for near, far in pairwise(edges):
        corners = [(x[0], 0.0, near), (x[1], 0.0, near), (x[1], 0.0, far), (x[0], 0.0, far)]
        c.face(corners, name, color)


def _ground(c: Canvas, street: Street, rng: np.random.Generator) -> None:
    grey = int(rng.integers(78, 108))
    asphalt: Color = (grey, grey, grey + int(rng.integers(0, 6)))
    walk: Color = shade((158, 152, 146), float(rng.uniform(0.85, 1.1)))
    grass: Color = (int(rng.integers(95, 130)), int(rng.integers(135, 160)), int(rng.integers(60, 85)))
    _strip(c, (-120.0, 120.0), "terrain", grass)
    _strip(c, (street.left - street.walk, street.left), "sidewalk", walk)
    _strip(c, (street.right, street.right + street.walk), "sidewalk", walk)
    _strip(c, (street.left, street.right), "road", asphalt)
    for x, out in ((street.left, -0.16), (street.right, 0.16)):
        _strip(c, (x, x + out), None, shade(walk, 1.2))
    paint: Color = (214, 214, 208)
    if rng.random() < 0.8:
        z = float(rng.uniform(2, 6))
        while z < 90:
            corners = [(-1.75, 0.0, z), (-1.6, 0.0, z), (-1.6, 0.0, z + 3), (-1.75, 0.0, z + 3)]
            c.face(corners, None, paint)
            z += 7.5
    if rng.random() < 0.25:
        z = float(rng.uniform(9, 22))
        for x in np.arange(street.left + 0.4, street.right - 0.5, 1.1):
            corners = [(x, 0.0, z), (x + 0.55, 0.0, z), (x + 0.55, 0.0, z + 3), (x, 0.0, z + 3)]
            c.face(corners, None, paint)


def _side(c: Canvas, line: float, rng: np.random.Generator) -> None:
    """Buildings, walls, fences and green along one line, drawn from far to near."""
    edges = [2.0]
    while edges[-1] < _FAR:
        edges.append(edges[-1] + float(rng.uniform(9, 24)))
    kinds = rng.choice(
        ["building", "wall", "fence", "vegetation"], size=len(edges), p=[0.62, 0.12, 0.12, 0.14]
    )
    for near, far, kind in reversed(list(zip(edges[:-1], edges[1:], kinds[:-1], strict=True))):
        match str(kind):
            case "building":
                _building(c, line, near, far, rng)
            case "wall":
                _hedge(c, line, near, far, rng)
                _panel(c, line, near, far, float(rng.uniform(1.6, 2.6)), "wall", (150, 140, 130))
            case "fence":
                _hedge(c, line, near, far, rng)
                _fence(c, line, near, far, float(rng.uniform(1.2, 1.9)))
            case _:
                _hedge(c, line, near, far, rng)


def _panel(
    c: Canvas, x: float, near: float, far: float, high: float, name: str, color: Color, low: float = 0.0
) -> None:
    c.face([(x, low, near), (x, low, far), (x, high, far), (x, high, near)], name, color)


def _building(c: Canvas, line: float, near: float, far: float, rng: np.random.Generator) -> None:
    high, floor = float(rng.uniform(7, 22)), float(rng.uniform(2.8, 3.6))
    color = shade(_WALLS[int(rng.integers(len(_WALLS)))], float(rng.uniform(0.8, 1.15)))
    lit = 1.0 if line > 0 else 0.78
    back = line + (14.0 if line > 0 else -14.0)
    c.upright((min(line, back), max(line, back)), (0, high), near, "building", shade(color, 0.6))
    _panel(c, line, near, far, high, "building", shade(color, lit))
    _panel(c, line, near, far, 0.8, "building", shade(color, lit * 0.7))
    glass = shade((70, 84, 100), float(rng.uniform(0.7, 1.3)))
    bay = float(rng.uniform(2.2, 3.4))
    for z in np.arange(near + 0.8, far - bay * 0.6, bay):
        for y in np.arange(1.1, high - floor * 0.7, floor):
            at = float(z)
            _panel(c, line, at, at + bay * 0.5, float(y) + floor * 0.5, "building", glass, low=float(y))
    _panel(c, line, near, far, high, "building", shade(color, 0.55), low=high - 0.4)


def _fence(c: Canvas, line: float, near: float, far: float, high: float) -> None:
    # Labelled as a whole, as a person would; bars are drawn, and the green behind shows dimly.
    _panel(c, line, near, far, high, "fence", (96, 108, 84))
    for z in np.arange(near, far, 0.55):
        _panel(c, line, float(z), float(z) + 0.2, high, "fence", (138, 110, 84))
    for y in (0.25, high - 0.2):
        _panel(c, line, near, far, y + 0.12, "fence", (120, 94, 72), low=y)


def _hedge(c: Canvas, line: float, near: float, far: float, rng: np.random.Generator) -> None:
    """Shrubs and trees that stand behind the line."""
    out = 1.0 if line > 0 else -1.0
    green: Color = (int(rng.integers(48, 85)), int(rng.integers(85, 120)), int(rng.integers(35, 60)))
    for z in np.arange(far, near, -1.3):
        for _ in range(5):
            at = (
                line + out * float(rng.uniform(1.2, 5.0)),
                float(rng.uniform(0.5, 4.5)),
                float(z) + float(rng.uniform(0, 1)),
            )
            radius = float(rng.uniform(0.7, 1.5))
            c.ellipse(at, (radius, radius * 0.85), "vegetation", shade(green, float(rng.uniform(0.6, 1.25))))
