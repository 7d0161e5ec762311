"""Patch id ↔ (image, row, column) and pixel boxes: pure integers.

An image of H×W pixels is cut into rows × columns patches of ceil(H/rows) × ceil(W/columns) pixels;
the last row and column hold what is left. Patch ids count row by row within an image, image by image.
"""

from contextlib import suppress
from dataclasses import dataclass, fields
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meal_gpu.errors import InputError


def _ceil_div(length: int, parts: int) -> int:
    return -(-length // parts)


@dataclass(frozen=True, slots=True)
class Grid:
    """`rows` × `columns` patches of every image of `height` × `width` pixels.

    Where a side does not divide, the last row or column is smaller.

    Raises:
        InputError: a size that is no whole number or below 1, or a grid so fine that its last row or column
            would be empty.
    """

    rows: int
    columns: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for field in fields(self):  # NumPy's integers would be another type to a kernel
            given = getattr(self, field.name)
            try:
                object.__setattr__(self, field.name, index(given))
            except TypeError:
                raise InputError(f"{field.name} must be a whole number, got {given!r}") from None
        for axis, parts, length in (("rows", self.rows, self.height), ("columns", self.columns, self.width)):
            if parts < 1 or length < 1:
                raise InputError(
                    f"a grid needs at least one of each: {parts} {axis} over {length} pixels were given"
                )
            if (parts - 1) * _ceil_div(length, parts) >= length:
                fits = _ceil_div(length, _ceil_div(length, parts))
                raise InputError(
                    f"{parts} {axis} over {length} pixels leave the last patch empty; use {fits} {axis}"
                )

    @property
    def patch_height(self) -> int:
        """In pixels, of all rows but the last, which may have fewer."""
        return _ceil_div(self.height, self.rows)

    @property
    def patch_width(self) -> int:
        """In pixels, of all columns but the last, which may have fewer."""
        return _ceil_div(self.width, self.columns)

    @property
    def patches_per_image(self) -> int:
        """The number of rows times that of columns."""
        return self.rows * self.columns

    def locate(self, patches: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Patch ids of any shape -> (image, row, column), each int64 of that shape.

        Raises:
            InputError: they are not whole numbers.
        """
        ids = _whole("patches", patches)
        image, cell = np.divmod(ids, self.patches_per_image)
        row, column = np.divmod(cell, self.columns)
        return image, row, column

    def patch_id(self, image: ArrayLike, row: ArrayLike, column: ArrayLike) -> NDArray[np.int64]:
        """(image, row, column) -> patch ids, int64; the inverse of `locate`.

        Raises:
            InputError: they are not whole numbers, or a row or column is not one of the grid.
        """
        rows, columns = _whole("row", row), _whole("column", column)
        for what, values, parts in (("row", rows, self.rows), ("column", columns, self.columns)):
            if values.size and not 0 <= values.min() <= values.max() < parts:
                raise InputError(f"{what} goes from 0 to {parts - 1}; got {values.min()} to {values.max()}")
        return np.asarray(_whole("image", image) * self.patches_per_image + rows * self.columns + columns)

    def patches_of(self, images: ArrayLike) -> NDArray[np.int64]:
        """Image numbers [N] -> ids [N · patches_per_image] int64 of all their patches, image after image."""
        base = _whole("images", images)[:, None] * self.patches_per_image
        return (base + np.arange(self.patches_per_image)).reshape(-1)

    def boxes(self, patches: ArrayLike) -> NDArray[np.int64]:
        """Patch ids [M] -> pixel boxes [M, 4] int64: left, top, right, bottom; right and bottom exclusive.

        Raises as `locate`.
        """
        _, row, column = self.locate(patches)
        top, left = row * self.patch_height, column * self.patch_width
        bottom = np.minimum(top + self.patch_height, self.height)
        right = np.minimum(left + self.patch_width, self.width)
        return np.stack([left, top, right, bottom], axis=-1)


def _whole(what: str, values: ArrayLike) -> NDArray[np.int64]:
    """As int64. Raises InputError, which says `what`, where that would round."""
    found = np.asarray(values)
    if found.dtype.kind == "O":
        with suppress(TypeError):
            found = np.array([index(value) for value in found.ravel()]).reshape(found.shape)
    if found.size and found.dtype.kind not in "iu":
        raise InputError(f"{what} must be whole numbers, got {found.dtype}")
    return found.astype(np.int64, copy=False)
