"""What a run's patches look like: thumbnails in their surroundings, entropy, predicted and labelled classes.

The report may read labels; nothing here goes back into a run.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from meal_gpu import data, models, ops
from meal_gpu.errors import DataError
from meal_gpu.grid import Grid
from meal_gpu.inference import device_named
from meal_gpu.models import Segmenter
from meal_gpu.ops.reference import patch_of_pixels
from meal_gpu.ops.upsampling import interpolation
from meal_gpu.passes import ImageSet
from meal_gpu.report.table import Run

SIDE = 208
"""The longer side of a thumbnail, in pixels."""

_DETAIL = 96  # the same, of a picture of the patch alone
_QUALITY = 72
_AT_ONCE = 32  # images in memory
# Black, purple, red, orange, pale yellow: lightness grows with the entropy, also where colours are not seen
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))

Pixels = NDArray[np.uint8]


class Picture(NamedTuple):
    """A thumbnail of `size` (width, height), with its patch at `box` (left, top, width, height) of it.

    `photo`, and what a model says of it, `heat` (entropy, from 0 to ln C nats) and `classes`, are data URIs;
    the last two are "" where no model was asked.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    photo: str
    heat: str
    classes: str


@dataclass(frozen=True)
class Scenes:
    """The dataset of a run."""

    dataset: data.Dataset
    grid: Grid

    @classmethod
    def open(cls, run: Run, grid: Grid, names: Sequence[str]) -> "Scenes":
        """The dataset that `run` names, where it still holds the images `names`.

        Raises:
            DataError: it is not there, or holds other images.
        """
        config = run.config
        dataset = data.open_dataset(config.dataset, config.root, size=config.size)
        if dataset.train.names != tuple(names) or dataset.size != (grid.height, grid.width):
            raise DataError(f"{dataset.root} holds other images than the run was made on")
        return cls(dataset, grid)

    @property
    def palette(self) -> list[tuple[str, str]]:
        """Each class with its colour, #rrggbb."""
        colors = ("#" + bytes(color).hex() for color in self.dataset.colors)
        return list(zip(self.dataset.classes, colors, strict=True))

    def model(self, run: Run, step: int) -> Segmenter:
        """The model of a step, on a GPU if it was made on one and there is one.

        Raises:
            ConfigError, UnavailableError: it cannot be read.
        """
        model = models.segmenter(len(self.dataset.classes), run.config.architecture)
        models.load(model, run.folder.step(step) / "model.safetensors")
        return model.to(device_named("auto" if run.config.device.startswith("cuda") else "cpu"))

    def pictures(self, patches: Sequence[int], model: Segmenter | None) -> list[Picture]:
        """A picture of each of the patches, with the patch's size around it."""
        found: dict[int, Picture] = {}
        for numbers, images in self._images(patches):
            logits: list[torch.Tensor] = []
            if model is not None:
                device = next(model.parameters()).device
                shown = ImageSet(images.to(device), ops.select_for(device))
                logits = [one for _, output in shown.outputs(model) for one in output.logits.float().cpu()]
            for place, number in enumerate(numbers):
                for patch in patches:
                    if patch // self.grid.patches_per_image == number:
                        predicted = (logits[place], model) if model is not None else None
                        found[patch] = self._picture(patch, images[place], predicted)
        return [found[patch] for patch in patches]

    def details(self, patches: Sequence[int]) -> list[str]:
        """The patches alone, small, as data URIs."""
        boxes = dict(zip(patches, self.grid.boxes(list(patches)).tolist(), strict=True))
        found: dict[int, str] = {}
        for numbers, images in self._images(patches):
            for patch, (left, top, right, bottom) in boxes.items():
                if (image := patch // self.grid.patches_per_image) in numbers:
                    pixels = images[numbers.index(image), top:bottom, left:right].numpy()
                    found[patch] = _jpeg(pixels, _scaled((right - left, bottom - top), _DETAIL))
        return [found[patch] for patch in patches]

    def class_pixels(self, steps: torch.Tensor, last: int) -> torch.Tensor:
        """[P] int64 (-1: not labelled) -> [last + 1, C] int64: labelled pixels of each class after each step.

        Raises:
            DataError: the pool has no labels, or one that cannot be read.
        """
        grid, classes = self.grid, len(self.dataset.classes)
        steps = steps.view(-1, grid.patches_per_image)
        patch = patch_of_pixels(grid, steps.device)
        counts = torch.zeros((last + 1) * classes, dtype=torch.int64)
        numbers = (steps >= 0).any(dim=1).nonzero().flatten().tolist()
        for part in _parts(numbers):
            truth = self._read(part, labels=True).long()
            step = steps[part][:, patch]
            known = (step >= 0) & (truth != data.VOID)
            counts += torch.bincount((step * classes + truth)[known], minlength=len(counts))
        return counts.view(last + 1, classes).cumsum(dim=0)

    def _picture(
        self, patch: int, image: torch.Tensor, predicted: tuple[torch.Tensor, Segmenter] | None
    ) -> Picture:
        left, top, right, bottom = self.grid.boxes(patch).tolist()
        x, width = _around(left, right, self.grid.width)
        y, height = _around(top, bottom, self.grid.height)
        size = _scaled((width, height), SIDE)
        heat = classes = ""
        if predicted is not None:
            logits = self._upsampled(*predicted, (x, y, x + width, y + height))
            entropy = torch.special.entr(logits.softmax(dim=0)).sum(dim=0) / math.log(max(2, len(logits)))
            heat = _jpeg(_heat(entropy), size)
            classes = self._png(logits.argmax(dim=0).to(torch.uint8).numpy(), size)
        box = (left - x) / width, (top - y) / height, (right - left) / width, (bottom - top) / height
        return Picture(
            size, box, _jpeg(image[y : y + height, x : x + width].numpy(), size), heat, classes
        )  # fmt: skip

    def _upsampled(
        self, logits: torch.Tensor, model: Segmenter, box: tuple[int, int, int, int]
    ) -> torch.Tensor:
        """Logits [C, h, w] of an image at full resolution inside a box, bilinear as everywhere."""
        padded = model.padded_size((self.grid.height, self.grid.width))
        for axis, low, high in ((1, box[1], box[3]), (2, box[0], box[2])):
            lower, upper, weight = interpolation(
                logits.shape[axis], padded[axis - 1], high, model.align_corners
            )
            share = weight[low:].float().view((-1, 1) if axis == 1 else (-1,))
            logits = torch.lerp(
                logits.index_select(axis, lower[low:]), logits.index_select(axis, upper[low:]), share
            )
        return logits

    def _png(self, classes: Pixels, size: tuple[int, int]) -> str:
        picture = Image.fromarray(classes).resize(size, Image.Resampling.NEAREST)
        picture.putpalette(np.array(self.dataset.colors, np.uint8).tobytes())
        return _uri(picture, "PNG", optimize=True)

    def _images(self, patches: Sequence[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The images that hold the patches, by number, and their pixels uint8 [U, H, W, 3]."""
        for part in _parts(sorted({patch // self.grid.patches_per_image for patch in patches})):
            yield part, self._read(part)

    def _read(self, numbers: list[int], *, labels: bool = False) -> torch.Tensor:
        split, size = self.dataset.train, self.dataset.size
        if split.packed is not None:
            mapped = data.load_labels(split, self.dataset) if labels else data.load_images(split, size)
            return mapped[numbers]
        part = dataclasses.replace(
            split, images=tuple(split.images[i] for i in numbers),
            labels=None if split.labels is None else tuple(split.labels[i] for i in numbers),
        )  # fmt: skip
        return data.load_labels(part, self.dataset) if labels else data.load_images(part, size)


def _parts(numbers: list[int]) -> Iterator[list[int]]:
    return (numbers[i : i + _AT_ONCE] for i in range(0, len(numbers), _AT_ONCE))


def _around(low: int, high: int, length: int) -> tuple[int, int]:
    """(begin, length) of a window twice as long as low … high, and around it, within an image."""
    size = min(2 * (high - low), length)
    return min(max(0, (low + high - size) // 2), length - size), size


def _scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _heat(values: torch.Tensor) -> Pixels:
    """[h, w] in 0..1 -> RGB [h, w, 3]."""
    at = values.numpy()
    where = np.linspace(0, 1, len(_HEAT))
    bands = [np.interp(at, where, [color[band] for color in _HEAT]) for band in range(3)]
    return np.stack(bands, axis=-1).round().astype(np.uint8)


def _jpeg(pixels: Pixels, size: tuple[int, int]) -> str:
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    return _uri(picture, "JPEG", quality=_QUALITY, optimize=True)


def _uri(picture: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
