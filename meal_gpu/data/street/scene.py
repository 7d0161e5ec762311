"""One street scene: ground and sky, two sides, then everything on the road from far to near."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meal_gpu.data.dataset import Color
from meal_gpu.data.street import actors, furniture
from meal_gpu.data.street.backdrop import Street, draw_backdrop
from meal_gpu.data.street.canvas import Canvas
from meal_gpu.data.street.light import expose
from meal_gpu.images.headers import Size

RARE = ("truck", "bus", "train", "motorcycle")
"""Classes drawn only in the frames that are asked for them."""

_NEAR, _FAR = 6.0, 75.0
_LANE = 3.3


@dataclass(frozen=True)
class _Thing:
    z: float
    draw: Callable[[], None]


def draw(
    size: Size, rng: np.random.Generator, *, rare: str | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a scene.

    Args:
        size: (height, width).
        rng: where every choice comes from.
        rare: one of `RARE` that this scene must show, or None.

    Returns:
        The image [H, W, 3] uint8 and Cityscapes label ids [H, W] uint8.
    """
    haze: Color = (int(rng.integers(175, 205)), int(rng.integers(188, 212)), int(rng.integers(200, 225)))
    canvas = Canvas(
        size, horizon=float(rng.uniform(0.40, 0.47)), centre=float(rng.uniform(0.42, 0.58)), haze=haze
    )
    street = Street.choose(rng)
    draw_backdrop(canvas, street, rng)
    things = _traffic(canvas, street, rng, rare) + _roadside(canvas, street, rng)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.draw()
    _bonnet(canvas, rng)
    labels = canvas.labels()
    return expose(canvas.pixels(), labels, rng), labels


def _traffic(c: Canvas, street: Street, rng: np.random.Generator, rare: str | None) -> list[_Thing]:
    things: list[_Thing] = []

    def put(kind: Callable[..., None], x: float, z: float, **options: object) -> None:
        things.append(_Thing(z, lambda: kind(c, x, z, rng, **options)))

    lanes: list[tuple[float, float, bool]] = [(0.0, 0.35, False), (-_LANE, 0.35, True)]
    if street.parking_right:
        lanes.append((street.right - 1.1, 0.75, False))
    if street.parking_left:
        lanes.append((street.left + 1.1, 0.75, True))
    if rare in ("truck", "bus", "train"):
        x = 0.0 if rare == "truck" else -_LANE
        x += float(rng.uniform(-0.3, 0.3)) if x else float(rng.choice([-0.5, 0.5]))
        kind = {"truck": actors.truck, "bus": actors.bus, "train": actors.train}[rare]
        put(kind, x, float(rng.uniform(9, 20)))
        lanes = [lane for lane in lanes if (lane[0] == 0.0) != (x > -1.0)]
    for x, density, oncoming in lanes:
        z = float(rng.uniform(_NEAR, 16))
        if x == 0.0:
            z += 5
        while z < _FAR:
            if rng.random() < density:
                put(actors.car, x + float(rng.uniform(-0.2, 0.2)), z, oncoming=oncoming)
            z += float(rng.uniform(5.5, 11))
    if rare == "motorcycle":
        for _ in range(2):
            _mounted(put, actors.motorcycle, street, rng, ridden=bool(rng.random() < 0.5))
    if rng.random() < 0.35:
        _mounted(put, actors.bicycle, street, rng, ridden=True)
    return things


def _mounted(
    put: Callable[..., None],
    kind: Callable[..., None],
    street: Street,
    rng: np.random.Generator,
    *,
    ridden: bool,
) -> None:
    z = float(rng.uniform(7, 20))
    x = float(rng.choice([street.right - 0.6, street.left + 0.9, 1.4]))
    put(kind, x, z)
    if ridden:
        put(actors.rider, x, z - 0.01)


def _roadside(c: Canvas, street: Street, rng: np.random.Generator) -> list[_Thing]:
    things: list[_Thing] = []

    def put(kind: Callable[..., None], x: float, z: float) -> None:
        things.append(_Thing(z, lambda: kind(c, x, z, rng)))

    for kerb, edge in ((street.left, street.facade_left), (street.right, street.facade_right)):
        out = 1.0 if kerb > 0 else -1.0
        walk = abs(edge - kerb)
        every = ((furniture.lamp, 0.30, 22), (furniture.sign, 0.35, 25), (furniture.traffic_light, 0.22, 30))
        for kind, chance, distance in every:
            z = float(rng.uniform(7, 7 + distance))
            while z < _FAR:
                if rng.random() < chance:
                    put(kind, kerb + out * 0.45, z)
                z += distance
        if rng.random() < 0.45:
            for z in np.arange(rng.uniform(9, 16), _FAR, rng.uniform(7, 12)):
                put(furniture.tree, kerb + out * 0.9, float(z))
        for kind, most, near in (
            (actors.person, 5, 6.0), (actors.bicycle, 2, 7.0), (furniture.bin_, 1, 8.0),
            (furniture.bush, 3, 9.0)
        ):  # fmt: skip
            for _ in range(int(rng.integers(most + 1))):
                z = near + float(rng.exponential(13))
                put(kind, kerb + out * float(rng.uniform(0.7, max(0.8, walk - 0.4))), min(z, _FAR))
    return things


def _bonnet(c: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the car that carries the camera."""
    high = float(rng.uniform(0.035, 0.06)) * c.height
    u = np.linspace(-0.02, 1.02, 25)
    arc = [(float(t) * c.width, c.height - high * float(1 - (2 * t - 1) ** 4)) for t in u]
    c.polygon([*arc, (c.width * 1.02, c.height + 2.0), (-2.0, c.height + 2.0)], "ego vehicle", (28, 30, 34))
