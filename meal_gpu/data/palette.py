"""Colours for classes that come without any."""

import colorsys

from meal_gpu.data.dataset import Color


def generate(n: int) -> tuple[Color, ...]:
    """`n` RGB colours, neighbours far apart in hue; the first k of n are the same for every n >= k."""
    colors = []
    for i in range(n):
        hue = (0.58 + i * 0.618033988749895) % 1.0
        value = (0.85, 0.6, 0.95)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.6, 0.75, 0.45)[i // 3 % 3], value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return tuple(colors)
