"""Images through a network, batch by batch, as memory allows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import add
from typing import TypeVar

import torch

from meal_gpu.errors import MealGpuError
from meal_gpu.grid import Grid
from meal_gpu.images.sources import Images, Part, Resident
from meal_gpu.inference import Graphed, autocast, checked, for_inference, name_of
from meal_gpu.memory import Halving, is_out_of_memory
from meal_gpu.models import Encoded, Network, Output, Segmenter
from meal_gpu.ops import Ops

Used = TypeVar("Used")

# What a user can do where memory is used up by one image
LOWER = (
    "Lower the size of the images or pass a window, compute in bfloat16, in a run lower pool_share or "
    "cache_gib, or end other programs on the device"
)
_GPU_BATCH = 8
# A capture costs some passes of its own
_GRAPH_FROM = 8


def default_batch(device: torch.device) -> int:
    """Images in a forward pass: 8 on a GPU, 1 on the CPU, whose caches then hold the activations."""
    return _GPU_BATCH if device.type == "cuda" else 1


class ImageSet:
    """Images of a pool that pass through a network in fixed batches.

    With a frozen encoder its outputs are kept, up to `cache_bytes`, because they never change: only the
    decoder runs from the second pass on. What does not fit is computed again each time, with equal bits.
    All frozen networks of one set must share their encoder's weights. Where the device's memory is used up,
    first what is kept is given up, and then batches are halved, see `memory.Halving`.

    Args:
        images: a source, or a uint8 tensor [N, H, W, 3] on the device that computes.
        batch_size: images in a forward pass; None: `default_batch` of the device.
        names: of the images, for errors.
        classes: how many a network must tell apart; None: any number.
    """

    def __init__(
        self, images: Images | torch.Tensor, ops: Ops, *, precision: str = "float32",
        batch_size: int | None = None, cache_bytes: int = 0, names: Sequence[str] | None = None,
        classes: int | None = None,
    ) -> None:  # fmt: skip
        self.images: Images = Resident(images) if isinstance(images, torch.Tensor) else images
        self.size = self.images.size
        self.device = self.images.device
        self.ops = ops
        self._whole = Grid(1, 1, *self.size)
        self.precision = precision
        self._batch_size = default_batch(self.device) if batch_size is None else batch_size
        self._ids = torch.arange(self._batch_size, device=self.device)
        self._free_bytes = cache_bytes
        self._encoded: list[Encoded] = []  # of the first batches
        self._names = names
        self._classes = classes
        self._halving = Halving(
            self._batch_size, self.device,
            f"a forward pass of images of {self.size[0]}×{self.size[1]} pixels in {precision}", LOWER,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def part(self, numbers: torch.Tensor) -> "ImageSet":
        """The images [K > 0] of these numbers, renumbered from 0, of which nothing is kept."""
        names = None if self._names is None else [self._names[number] for number in numbers.tolist()]
        return ImageSet(
            Part(self.images, numbers), self.ops, precision=self.precision, batch_size=self._batch_size,
            names=names, classes=self._classes,
        )  # fmt: skip

    def name(self, image: int) -> str:
        """What errors call an image."""
        return f"image {image}" if self._names is None else self._names[image]

    def _give_up_cache(self) -> bool:
        kept = bool(self._encoded)
        self._encoded.clear()
        self._free_bytes = 0
        return kept

    def outputs(self, model: Network) -> Iterator[tuple[slice, Output]]:
        """Yield (images, logits and features) batch by batch, in order."""
        return self.passed(model, lambda output: output)

    @torch.inference_mode()
    def passed(self, model: Network, use: Callable[[Output], Used]) -> Iterator[tuple[slice, Used]]:
        """Yield (images, what `use` makes of their `Output`) batch by batch, in order.

        Raises:
            InputError: the model's output is not what it must be, see `inference.checked`.
            MealGpuError: the model fails, and the image is named; or memory is used up by a single image.
        """
        ready = for_inference(model, self.precision, self.device)
        if isinstance(ready, Segmenter) and ready.frozen:
            yield from self.decoded(ready, lambda part: use(self._decode(ready, part)))
            return
        graphed: Graphed | None = None

        def forget() -> None:
            nonlocal graphed
            graphed = None

        def run(pixels: torch.Tensor) -> Used:
            nonlocal graphed
            if graphed is None and self._worth_a_graph(ready):
                graphed = Graphed(ready, pixels, self.precision)
            if graphed is None:
                return use(self.forward(ready, pixels))
            return use(self._checked(graphed(pixels), ready, pixels))

        yield from self.normalised(ready, run, forget=forget)

    def forward(self, ready: Network, pixels: torch.Tensor) -> Output:
        """The output for normalised `pixels` [B, 3, H, W]; what a `Network` promises of it is checked."""
        with autocast(self.device, self.precision), _blaming(ready):
            output = ready(pixels)
        return self._checked(output, ready, pixels)

    def _checked(self, output: Output, ready: Network, pixels: torch.Tensor) -> Output:
        span = ready.padded_size((int(pixels.shape[2]), int(pixels.shape[3])))
        return checked(output, pixels, span, ready, self._classes)

    def _decode(self, ready: Segmenter, part: Encoded) -> Output:
        with autocast(self.device, self.precision):
            output = Output(ready.decode(part), part.deep)
        return checked(output, part.deep, ready.padded_size(self.size), ready, self._classes)

    def _worth_a_graph(self, model: Network) -> bool:
        # A user's own network may wait for the device, which a capture cannot hold
        many = len(self) >= _GRAPH_FROM * self._batch_size
        return many and self.device.type == "cuda" and isinstance(model, Segmenter)

    @torch.inference_mode()
    def feature_maps(self, model: Network) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (images, [B, D, h', w']) batch by batch, without the decoder."""
        ready = for_inference(model, self.precision, self.device)
        if isinstance(ready, Segmenter) and ready.frozen:
            for batch, encoded in self.encodings(ready):
                yield batch, encoded.deep
            return
        yield from self.normalised(ready, lambda pixels: self.features(ready, pixels))

    def features(self, ready: Network, pixels: torch.Tensor) -> torch.Tensor:
        """[B, D, h', w'] of normalised `pixels` [B, 3, H, W]."""
        with autocast(self.device, self.precision), _blaming(ready):
            return ready.features(pixels)

    def normalised(
        self, model: Network, run: Callable[[torch.Tensor], Used], first: int = 0,
        forget: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[slice, Used]]:  # fmt: skip
        """Yield (images, `run(pixels)`) batch by batch, from image `first` on.

        The pixels [B, 3, H, W] are as the network takes them, and each call has its own.
        """
        rest = torch.arange(first, len(self)) if first else None
        for images in self.images.batches(self._batch_size, of=rest):
            part = partial(self.named, partial(self._run, run, model, images), partial(add, first))
            for rows, used in self._halving.over(len(images), part, forget, self._give_up_cache):
                yield _moved(rows, first), used
            first += len(images)

    def named(self, run: Callable[[slice], Used], image: Callable[[int], int], rows: slice) -> Used:
        """`run(rows)`; where the model fails, the `image` of the first row with which it does is named."""
        try:
            return run(rows)
        except _FailedError as failed:
            found, where = failed, " … ".join(self.name(image(row)) for row in (rows.start, rows.stop - 1))
        for row in range(rows.start, rows.stop):
            try:
                run(slice(row, row + 1))
            except _FailedError as failed:
                found, where = failed, self.name(image(row))
                break
        raise MealGpuError(f"{where}: {found}") from found.__cause__

    def _run(
        self, run: Callable[[torch.Tensor], Used], model: Network, images: torch.Tensor, rows: slice
    ) -> Used:
        part = images[rows]
        ids = self._ids[: len(part)]
        pixels = self.ops.gather_patches(part, None, ids, self._whole, model.mean, model.std, 0).pixels
        return run(pixels)

    def decoded(self, model: Segmenter, run: Callable[[Encoded], Used]) -> Iterator[tuple[slice, Used]]:
        """As `normalised`, of what the frozen encoder makes of the batches."""
        for batch, encoded in self.encodings(model):
            part = partial(_run_encoded, run, encoded)
            for rows, used in self._halving.over(len(encoded.deep), part, spare=self._give_up_cache):
                yield _moved(rows, batch.start), used

    def encodings(self, model: Segmenter) -> Iterator[tuple[slice, Encoded]]:
        """As `normalised`, what the frozen encoder makes of the batches; one such iteration at a time."""
        number = done = 0
        while number < len(self._encoded):  # which may be given up meanwhile
            encoded = self._encoded[number]
            number += 1
            yield slice(done, done + len(encoded.deep)), encoded
            done += len(encoded.deep)
        if done == len(self):
            return

        def run(pixels: torch.Tensor) -> Encoded:
            with autocast(self.device, self.precision):
                return model.encode(pixels)

        keeps = True
        for batch, encoded in self.normalised(model, run, done):
            size = sum(part.nbytes for part in encoded)
            if keeps := keeps and size <= self._free_bytes:
                self._free_bytes -= size
                self._encoded.append(encoded)
            yield batch, encoded


def _run_encoded(run: Callable[[Encoded], Used], encoded: Encoded, rows: slice) -> Used:
    return run(Encoded(*(each[rows] for each in encoded)))


class _FailedError(Exception):
    """A user's network failed, for its own reasons."""


@contextmanager
def _blaming(model: Network) -> Iterator[None]:
    try:
        yield
    except MealGpuError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise _FailedError(f"{name_of(model)} raised {type(error).__name__}: {error}") from error


def _moved(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)
