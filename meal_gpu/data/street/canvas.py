"""An image and its labels drawn together, seen by a camera 1.4 m above a flat road.

World coordinates are metres: x to the right, y up from the road, z away from the camera.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from meal_gpu.data.cityscapes import LABEL_IDS
from meal_gpu.data.dataset import Color
from meal_gpu.images.headers import Size

Point = tuple[float, float]
Point3 = tuple[float, float, float]

_SCALE = 2  # drawn at twice the size: smooth edges in the image, none in the labels
_CAMERA_HEIGHT = 1.4
_FOG_DISTANCE = 150.0
_VOID_IDS = {"ego vehicle": 1, "static": 4, "ground": 6, "parking": 9}
_IDS = {**LABEL_IDS, **_VOID_IDS}


def shade(color: Color, factor: float) -> Color:
    """`color` made darker (below 1) or brighter (above 1)."""
    red, green, blue = (min(255, max(0, round(c * factor))) for c in color)
    return red, green, blue


def mix(a: Color, b: Color, share: float) -> Color:
    """`a` with `share` of `b` in it."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


class Canvas:
    """Draws shapes into an image and, unless their name is None, into its labels."""

    def __init__(self, size: Size, *, horizon: float, centre: float, haze: Color) -> None:
        """A blank canvas of `size`; `horizon` and `centre` are fractions of its height and width."""
        self.height, self.width = size
        self.focal = 0.95 * max(self.width, self.height)
        self.horizon = horizon * self.height
        self.centre = centre * self.width
        self.haze = haze
        shape = (self.width * _SCALE, self.height * _SCALE)
        self._image = Image.new("RGB", shape)
        self._labels = Image.new("L", shape)
        self._draw = ImageDraw.Draw(self._image)
        self._draw_labels = ImageDraw.Draw(self._labels)

    def project(self, x: float, y: float, z: float) -> Point:
        """World -> pixel coordinates."""
        return self.centre + self.focal * x / z, self.horizon - self.focal * (y - _CAMERA_HEIGHT) / z

    def fogged(self, color: Color, z: float) -> Color:
        """`color` as seen from `z` metres."""
        return mix(color, self.haze, 1 - math.exp(-z / _FOG_DISTANCE))

    def polygon(self, points: Sequence[Point], name: str | None, color: Color) -> None:
        """Fill a polygon given in pixels."""
        scaled = [(u * _SCALE, v * _SCALE) for u, v in points]
        self._draw.polygon(scaled, fill=color)
        if name is not None:
            self._draw_labels.polygon(scaled, fill=_IDS[name])

    def face(self, points: Sequence[Point3], name: str | None, color: Color) -> None:
        """Fill a polygon given in the world, fogged by its nearest point."""
        z = min(p[2] for p in points)
        self.polygon([self.project(*p) for p in points], name, self.fogged(color, z))

    def upright(
        self, x: tuple[float, float], y: tuple[float, float], z: float, name: str | None, color: Color
    ) -> None:
        """Fill a rectangle that faces the camera."""
        corners = [(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)]
        self.face(corners, name, color)

    def ellipse(self, centre: Point3, radii: Point, name: str | None, color: Color) -> None:
        """Fill an ellipse that faces the camera."""
        u, v = self.project(*centre)
        scale = self.focal / centre[2]
        a, b = radii[0] * scale, radii[1] * scale
        box = [(u - a) * _SCALE, (v - b) * _SCALE, (u + a) * _SCALE, (v + b) * _SCALE]
        self._draw.ellipse(box, fill=self.fogged(color, centre[2]))
        if name is not None:
            self._draw_labels.ellipse(box, fill=_IDS[name])

    def line(self, points: Sequence[Point3], thickness: float, name: str | None, color: Color) -> None:
        """Draw a stroke of `thickness` metres that faces the camera."""
        z = min(p[2] for p in points)
        width = max(1, round(thickness * self.focal / z * _SCALE))
        scaled = [(u * _SCALE, v * _SCALE) for u, v in (self.project(*p) for p in points)]
        self._draw.line(scaled, fill=self.fogged(color, z), width=width, joint="curve")
        if name is not None:
            self._draw_labels.line(scaled, fill=_IDS[name], width=max(2, width), joint="curve")

    def shadow(self, x: tuple[float, float], z: tuple[float, float]) -> None:
        """Darken the road below something."""
        corners = [(x[0], 0.0, z[0]), (x[1], 0.0, z[0]), (x[1], 0.0, z[1]), (x[0], 0.0, z[1])]
        self.face(corners, None, (38, 38, 42))

    def pixels(self) -> NDArray[np.float32]:
        """The image [H, W, 3], 0 to 255."""
        return np.asarray(self._image.reduce(_SCALE), dtype=np.float32)

    def labels(self) -> NDArray[np.uint8]:
        """The label ids [H, W]."""
        return np.asarray(self._labels, dtype=np.uint8)[_SCALE // 2 :: _SCALE, _SCALE // 2 :: _SCALE].copy()
