"""What a user calls "my images" -> a source, in the fastest place that has room."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from meal_gpu.cache import expanded
from meal_gpu.errors import DataError, InputError
from meal_gpu.images.collected import Collected
from meal_gpu.images.content import is_url
from meal_gpu.images.headers import SUFFIXES, Size, image_size
from meal_gpu.images.listing import Listing, require_unique
from meal_gpu.images.loader import Loader
from meal_gpu.images.local import State, files_below, require_different
from meal_gpu.images.probing import Progress, probe, refusal
from meal_gpu.images.remote import Remote
from meal_gpu.images.sources import Drawn, Hosted, Images, Listed, Resident, Streamed, require_images
from meal_gpu.memory import free_bytes, same_device

Given = str | Path | Sequence[str | Path] | torch.Tensor | Listed

SHARE = 0.5
"""How much of the free memory a pool may take."""


def open_images(
    given: Given, device: torch.device, *, size: Size | None = None, share: float = SHARE
) -> tuple[Images, tuple[str, ...]]:
    """Open a pool of images and say what each is called.

    Args:
        given: a folder (searched for images in all depths, in the order of their paths, save what is hidden
            or was written by this package), a list of different files, a uint8 tensor [N, H, W, 3] on any
            device, or a torch `Dataset` of the map style (see `sources.Drawn`).
        device: where the batches are needed.
        size: working (height, width) of files; None: that of the first. Tensors and datasets have their own.
        share: of the free memory; files and datasets that take more are read anew in every pass.

    Raises:
        InputError: something else, or images of another dtype or shape.
        DataError: no images, or a file that is missing, none, or there twice; it is named.
    """
    if isinstance(given, torch.Tensor):
        images = require_images(given)
        names = tuple(str(index) for index in range(len(images)))
        if same_device(images.device, device):
            # The kernels want rows in their order; on a CPU a pool may be a mapped file
            return Resident(images.contiguous() if images.is_cuda else images), names
        if images.nbytes <= share * free_bytes(device):
            return Resident(images.to(device, memory_format=torch.contiguous_format)), names
        return Hosted(images, device), names
    if isinstance(given, str | Path):
        paths, names = _folder(expanded(given))
        _require_usable(paths)
        return open_files(paths, device, size=size, share=share), names
    if isinstance(given, list | tuple):
        if not all(isinstance(path, str | Path) for path in given):
            raise InputError("a list of images must hold paths; stack tensors into one [N, H, W, 3]")
        paths = tuple(expanded(path) for path in given)
        require_unique(list(map(str, paths)), "images: the file")
        _require_usable(paths)
        return open_files(paths, device, size=size, share=share), tuple(str(path) for path in given)
    if hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        drawn = _collected(lambda place: Drawn(given, place), device, share)
        return drawn, tuple(str(index) for index in range(len(drawn)))
    raise InputError(
        f"images must be a folder, a list of files, a uint8 tensor or a torch Dataset with a length, "
        f"got {type(given).__name__}"
    )


def _require_usable(paths: Sequence[Path]) -> None:
    """Raises DataError naming files that links make the same, or whose header or structure says that they
    cannot be used.
    """
    files = [str(path) for path in paths]
    require_different(files, list(map(State.of, files)))
    if problems := probe(files, None):
        raise refusal(problems, "mend these files, or leave them out")


def _folder(root: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; to give single files, pass a list of paths")
    found = {path.relative_to(root).as_posix(): path for path in files_below(root)}
    names = sorted(name for name in found if name.lower().endswith(SUFFIXES))  # as `list_images` does
    paths = tuple(found[name] for name in names)
    if other := next((path for path in paths if not path.is_file()), None):
        image_size(other)  # a broken link, or a pipe, which nothing should open: named
    if not paths:
        raise DataError(f"{root}: no images ({', '.join(SUFFIXES)}) in this folder")
    return paths, tuple(names)


def open_files(
    paths: Sequence[Path],
    device: torch.device,
    *,
    size: Size | None = None,
    share: float = SHARE,
    progress: Progress | None = None,
) -> Images:
    """Decode the files once into the device's memory, or page-locked host memory, where they fit `share`
    of what is free there; else they stay files.
    """
    if not paths:
        raise DataError("no images to load")
    size = size or image_size(paths[0])
    place = _room(len(paths), size, device, share)
    if place is None:
        if progress:
            progress(len(paths))
        return Streamed(paths, size, device)
    images = decoded(paths, size, place, progress, decoder=device)
    return Resident(images) if place == device else Hosted(images, device, locked=True)


def open_listing(
    listing: Listing, device: torch.device, *, size: Size | None = None, share: float = SHARE
) -> Images:
    """Local files and URLs, each decoded when it is first asked for, and kept where all of them would fit
    `share` of what is free; else decoded, or fetched, anew in every pass.

    Raises:
        DataError: no images, or the first cannot be fetched or is no image; it is named.
        UnavailableError: the package for a URL's protocol is missing.
    """
    if any(is_url(file) for file in listing.files):
        return _collected(Remote(listing.files, size, device).at, device, share)
    paths = [Path(file) for file in listing.files]
    return _collected(Streamed(paths, size, device).at, device, share)


def _collected(images: Callable[[torch.device], Images], device: torch.device, share: float) -> Images:
    """What `images` gives for a device, collected in the memory of the device or the host, if it fits."""
    found = images(device)
    place = _room(len(found), found.size, device, share)
    if place is None:
        return found
    return Collected(found if place == device else images(place), device)


def _room(count: int, size: Size, device: torch.device, share: float) -> torch.device | None:
    """The device, or else the host, if `share` of what is free there holds the images."""
    needed = count * math.prod(size) * 3
    if needed <= share * free_bytes(device):
        return device
    host = torch.device("cpu")
    return host if device != host and needed <= share * free_bytes(host) else None


def decoded(
    paths: Sequence[Path], size: Size, device: torch.device, progress: Progress | None,
    decoder: torch.device | None = None,
) -> torch.Tensor:  # fmt: skip
    """All files, uint8 [N, H, W, 3] on `device`, where `decoder` names no other to decode on."""
    images = torch.empty((len(paths), *size, 3), dtype=torch.uint8, device=device)
    fill(images, paths, progress, decoder)
    return images


def fill(
    out: torch.Tensor, paths: Sequence[Path], progress: Progress | None = None,
    decoder: torch.device | None = None,
) -> None:  # fmt: skip
    """Decode the files into `out` [N, H, W, 3] uint8, on its device, or on that of the `decoder`."""
    if not paths:
        return
    start = 0
    for batch in Loader(paths, (int(out.shape[1]), int(out.shape[2])), device=decoder or out.device):
        out[start : start + len(batch)].copy_(batch)
        start += len(batch)
        if progress:
            progress(len(batch))
