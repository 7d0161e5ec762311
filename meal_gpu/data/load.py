"""A whole split as one resident tensor."""

from pathlib import Path

import numpy as np
import torch

from meal_gpu.data.dataset import UNKNOWN, Dataset, Split
from meal_gpu.errors import DataError
from meal_gpu.images.headers import Size, image_size
from meal_gpu.images.loader import Loader
from meal_gpu.images.opening import SHARE, decoded, open_files
from meal_gpu.images.probing import Progress
from meal_gpu.images.sources import Hosted, Images, Resident
from meal_gpu.memory import free_bytes

_CHUNK = 64  # images copied at once from a pack to the device


def load_images(
    split: Split,
    size: Size,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> torch.Tensor:
    """Load every image of `split`.

    Args:
        split: the images; those of a packed split are not decoded but mapped from disk.
        size: working (height, width); images of another native size are resized.
        device: where the tensor lives.
        progress: called with the number of images finished since the last call.

    Returns:
        [N, H, W, 3] uint8 on `device`, in the order of the split.

    Raises:
        DataError: naming the image that is missing, damaged or of another size.
        UnavailableError: DALI or the device is not there.
    """
    if split.packed is not None:
        return _packed(Path(f"{split.packed}.images.npy"), (len(split), *size, 3), device, progress)
    return decoded(split.images, size, torch.device(device), progress)


def open_images(
    split: Split, size: Size, device: torch.device, *, share: float = SHARE, progress: Progress | None = None
) -> Images:
    """Open every image of `split` in the fastest place with room: the device, host memory, or the files.

    On the CPU a packed split stays on the disk, mapped. Arguments and errors as of `load_images`; `share` of
    the free memory may be taken.
    """
    if split.packed is None:
        return open_files(split.images, device, size=size, share=share, progress=progress)
    mapped = load_images(split, size)
    if device.type == "cpu" or mapped.nbytes > share * free_bytes(device):
        if progress:
            progress(len(split))
        return Resident(mapped) if device.type == "cpu" else Hosted(mapped, device)
    return Resident(load_images(split, size, device=device, progress=progress))


def load_labels(
    split: Split,
    dataset: Dataset,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> torch.Tensor:
    """Load every label of `split` as train ids, at the dataset's working size.

    Args:
        split: one of the dataset's splits.
        dataset: gives the working size and the table of ids.
        device: where the tensor lives.
        progress: called with the number of images finished since the last call.

    Returns:
        [N, H, W] uint8 on `device`: train ids, and `VOID` where there is no label.

    Raises:
        DataError: the split has no labels, a file is missing, damaged or not of its image's size, or
            holds an id that the dataset does not know.
        UnavailableError: DALI or the device is not there.
    """
    if split.labels is None:
        raise DataError(f"{split.root}: this split of {len(split)} images has no labels")
    if split.packed is not None:
        return _packed(Path(f"{split.packed}.labels.npy"), (len(split), *dataset.size), device, progress)
    resident = torch.empty((len(split), *dataset.size), dtype=torch.uint8, device=device)
    fill_labels(resident, split, dataset, progress)
    return resident


def fill_labels(out: torch.Tensor, split: Split, dataset: Dataset, progress: Progress | None) -> None:
    """Decode the labels of `split` into `out` [N, H, W] uint8 as train ids, on its device."""
    if not split.labels:
        return
    table = torch.tensor(dataset.lookup, dtype=torch.int16, device=out.device)
    native = image_size(split.images[0])
    start = 0
    for batch in Loader(split.labels, dataset.size, labels=True, device=out.device, native=native):
        train_ids = table[batch.int()]
        if bool((train_ids == UNKNOWN).any()):
            raise _unknown(split.labels[start : start + len(batch)], batch, train_ids, dataset)
        out[start : start + len(batch)].copy_(train_ids)
        start += len(batch)
        if progress:
            progress(len(batch))


def describe_unknown(path: Path, label_id: int, dataset: Dataset) -> str:
    """The message for an id in a label file that the dataset does not know."""
    known = ", ".join(map(str, dataset.label_ids))
    return (
        f"{path}: label id {label_id} is unknown to {dataset.name}; it knows {known}. "
        f"Correct the file, or open the tree as the dataset its labels were made for"
    )


def _unknown(
    paths: tuple[Path, ...], batch: torch.Tensor, train_ids: torch.Tensor, dataset: Dataset
) -> DataError:
    image, row, column = (train_ids == UNKNOWN).nonzero()[0].tolist()
    return DataError(describe_unknown(paths[image], int(batch[image, row, column]), dataset))


def _packed(
    path: Path, shape: tuple[int, ...], device: str | torch.device, progress: Progress | None
) -> torch.Tensor:
    try:
        # Copy-on-write: torch wants writable memory, and the file must stay as it is.
        pixels = np.load(path, mmap_mode="c")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable pack ({error}); pack the dataset again") from error
    if pixels.dtype != np.uint8 or pixels.ndim != len(shape) or pixels.shape[3:] != shape[3:]:
        raise DataError(
            f"{path}: {pixels.dtype} {list(pixels.shape)}, uint8 {list(shape)} expected; pack it again"
        )
    if pixels.shape[1:3] != shape[1:3]:
        raise DataError(
            f"{path}: packed at {pixels.shape[1]}×{pixels.shape[2]} pixels, {shape[1]}×{shape[2]} was asked "
            f"for; pack the dataset at that size"
        )
    if len(pixels) != shape[0]:
        raise DataError(f"{path}: {len(pixels)} images, pack.json names {shape[0]}; pack the dataset again")
    mapped = torch.from_numpy(pixels)
    if torch.device(device).type == "cpu":
        if progress:
            progress(len(mapped))
        return mapped
    resident = torch.empty(mapped.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(mapped), _CHUNK):
        chunk = mapped[start : start + _CHUNK]
        resident[start : start + len(chunk)].copy_(chunk)
        if progress:
            progress(len(chunk))
    return resident
