"""What the model predicts for patches, at the resolution of the frames as a person sees them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from meal_gpu.images.headers import Size
from meal_gpu.images.sources import Images, Part
from meal_gpu.models import Network
from meal_gpu.passes import ImageSet
from meal_gpu.scoring import Advance


@torch.inference_mode()
def predictions(
    images: ImageSet, model: Network, boxes: Sequence[Sequence[tuple[int, int, int, int]]], native: Size
) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield, image by image, the train ids [h, w] uint8 of its boxes.

    The logits are upsampled inside the boxes only: nothing of C channels at the size of a frame exists.

    Args:
        boxes: for each of the images, (left, top, right, bottom) in pixels of the `native` frame.
        native: (height, width) of the frames before they were resized to what the images have.
    """
    padded = model.padded_size(images.size)
    for batch, output in images.outputs(model):
        for logits, wanted in zip(output.logits.float(), boxes[batch], strict=True):
            yield [_inside(logits, box, images.size, native, padded, model.align_corners) for box in wanted]


def class_count(images: ImageSet, model: Network) -> int:
    """How many classes the model tells apart, by its logits for the first batch."""
    _, output = next(iter(images.outputs(model)))
    return output.logits.shape[1]


def patch_predictions(
    source: Images, image_set: Callable[[Images], ImageSet], model: Network, images: NDArray[np.int64],
    boxes: Sequence[Sequence[int]], native: Size, advance: Advance = lambda _: None,
) -> list[NDArray[np.uint8]]:  # fmt: skip
    """`predictions` patch by patch, in the order given; every image passes through the model once.

    Args:
        source: the pool; `image_set` prepares a part of it.
        images: [M] numbers of the patches' images.
        boxes: left, top, right, bottom of each patch, as for `predictions`.
        advance: is told of every image.
    """
    opened, place = np.unique(images, return_inverse=True)
    rows: list[list[int]] = [[] for _ in opened]
    for row, at in enumerate(place):
        rows[at].append(row)
    wanted = [[(b[0], b[1], b[2], b[3]) for b in (boxes[row] for row in of)] for of in rows]
    masks: dict[int, NDArray[np.uint8]] = {}
    part = image_set(Part(source, torch.from_numpy(opened)))
    for of, found in zip(rows, predictions(part, model, wanted, native), strict=True):
        masks |= dict(zip(of, found, strict=True))
        advance(1)
    return [masks[row] for row in range(len(images))]


def _inside(
    logits: torch.Tensor,
    box: tuple[int, int, int, int],
    size: Size,
    native: Size,
    padded: Size,
    corners: bool,
) -> NDArray[np.uint8]:
    left, top, right, bottom = box
    x = _positions(left, right, native[1], size[1], padded[1], logits.shape[2], corners, logits.device)
    y = _positions(top, bottom, native[0], size[0], padded[0], logits.shape[1], corners, logits.device)
    where = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    sampled = F.grid_sample(logits[None], where[None], padding_mode="border", align_corners=True)
    found: NDArray[np.uint8] = sampled[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return found


def _positions(
    low: int, high: int, native: int, size: int, padded: int, cells: int, corners: bool, device: torch.device
) -> torch.Tensor:
    """Centres of the native pixels low … high - 1, in [-1, 1] from the first cell's centre to the last's."""
    pixel = (torch.arange(low, high, dtype=torch.float64) + 0.5) * size / native - 0.5
    from_centre = pixel * (cells - 1) / max(1, padded - 1)
    cell = from_centre if corners else (pixel + 0.5) * cells / padded - 0.5
    return (cell / max(1, cells - 1) * 2 - 1).to(device, torch.float32)
