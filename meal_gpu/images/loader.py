"""The DALI loader: files -> uint8 batches on the device. One pipeline definition for CPU and GPU.

Measured on the CPU backend: PNG pixels equal Pillow's. JPEG pixels equal those of a Pillow built on
libjpeg-turbo; `JPEG_TOLERANCE` is what is promised. The resize of images is linear with an antialiasing
filter (a triangle as wide as the scale). The resize of labels takes, for output pixel x, the input
pixel floor((x + 0.5) * input / output), so no id is ever mixed; where that falls exactly on a border
between two pixels, float32 may take the one before (never when one size is a multiple of the other).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.dlpack import from_dlpack

from meal_gpu.errors import DataError, InputError, UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.images.headers import FORMATS, Size, image_size, label_kind
from meal_gpu.memory import explained, is_out_of_memory, number, release

JPEG_TOLERANCE = 2
"""Largest difference of a CPU-decoded JPEG from Pillow, in levels of 255; 0 was measured."""

_PREFETCH = 2
_GPU_THREADS = 16  # each takes DALI 32 MiB, half of it on the device
_LOWER = "Let the files be fewer at once (batch_size), or end other programs on the device"


def decoding_threads(device: torch.device) -> int:
    """As many as torch has, on a GPU at most 16."""
    threads = torch.get_num_threads()
    return min(threads, _GPU_THREADS) if device.type == "cuda" else threads


class Loader:
    """Iterates over image or label files in order, as uint8 torch tensors on `device`.

    Yields [B, H, W, 3] for images and [B, H, W] with the ids of the files for labels; with `grid`,
    [B, rows*columns, h, w, 3] and [B, rows*columns, h, w], the patches of an image row by row. The last
    batch is smaller where the number of files asks for it. Every `iter()` starts from the first file.

    A batch is a view of DALI's own memory, without a copy. It stays valid for as long as it is held; on a
    GPU it belongs to the stream that was current when it was fetched.

    Args:
        paths: image or label files, all of one native size.
        size: (height, width) of the batches; files of another size are resized.
        labels: read 8-bit grey or palette PNG files of ids rather than images.
        device: "cpu" or a CUDA device; on CUDA the decoder is DALI's `mixed` one.
        batch_size: files per batch.
        threads: decoding threads; default: as many as torch has, on a GPU at most 16.
        grid: cut into its patches inside the pipeline; its patches must all be of one size.
        native: the native (height, width) that every file must have; default: that of the first.

    Raises:
        InputError: an impossible size, batch size, thread count or grid.
        UnavailableError: DALI is not installed, or `device` is not there.
        DataError: no files, or (while iterating) one that cannot be decoded or has another size.
        MealGpuError: (while iterating) memory is used up, also after torch and DALI have given back theirs.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: Size,
        *,
        labels: bool = False,
        device: str | torch.device = "cpu",
        batch_size: int = 8,
        threads: int | None = None,
        grid: Grid | None = None,
        native: Size | None = None,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.size = (int(size[0]), int(size[1]))
        self.labels = labels
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.threads = decoding_threads(self.device) if threads is None else threads
        self.grid = grid
        if min(size) < 1 or batch_size < 1 or self.threads < 1:
            raise InputError(
                f"size {size}, batch_size {batch_size} and threads {self.threads} must all be at least 1"
            )
        if not self.paths:
            raise DataError("no files to load")
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(
                f"device {device!s} was asked for, but torch sees no GPU; use device='cpu'"
            )
        if grid is not None:
            _check_grid(grid, self.size)
        _import_dali()
        self.native = native or image_size(self.paths[0])
        self._kind = label_kind(self.paths[0]) if labels else "image"

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.paths) // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        pipeline: Any = None
        height, width = self.native
        what = f"decoding {self.batch_size} files of {height}×{width} pixels at once"
        for start in range(0, len(self.paths), self.batch_size):
            files = self.paths[start : start + self.batch_size]
            with explained(self.device, what, _LOWER):
                try:
                    pipeline, outputs = self._run(pipeline, start, stream)
                except (RuntimeError, MemoryError):
                    pipeline = None
                if pipeline is None:  # what torch keeps unused may do
                    release(self.device)
                    pipeline, outputs = self._run(None, start, stream)
            if len(outputs) > 1:
                self._check_files(files, np.asarray(outputs[1].as_tensor()))
            batch = from_dlpack(outputs[0].as_tensor())
            yield batch[: len(files), ..., 0] if self.labels else batch[: len(files)]

    def _run(self, pipeline: Any, start: int, stream: "torch.cuda.Stream | None") -> tuple[Any, Any]:
        """The pipeline, built where there is none, and its next outputs.

        Raises:
            DataError: a file cannot be decoded.
            RuntimeError, MemoryError: memory is used up.
        """
        try:
            pipeline = pipeline or self._build(start)
            return pipeline, pipeline.run(stream)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # The pipeline reads ahead: the culprit may lie in one of the batches that follow
            ahead = self.paths[start : start + (1 + _PREFETCH) * self.batch_size]
            raise self._explain(ahead, error) from error

    def _build(self, start: int) -> Any:
        """The pipeline of the files from `start` on."""
        dali = _import_dali()
        fn, types = dali.fn, dali.types
        mixed = self.device.type == "cuda"

        def pixels_and_shapes() -> tuple[Any, ...]:
            if self._kind == "palette":
                # DALI's decoder gives the colours of a palette, never its indices.
                pixels = fn.external_source(
                    source=self._palette_batches(start), dtype=types.UINT8, layout="HWC"
                )
                return (pixels.gpu() if mixed else pixels,)
            files = [str(path) for path in self.paths[start:]]
            encoded, _ = fn.readers.file(files=files, pad_last_batch=True)
            pixels = fn.decoders.image(
                encoded,
                device="mixed" if mixed else "cpu",
                output_type=types.GRAY if self.labels else types.RGB,
                jpeg_fancy_upsampling=True,  # the GPU's chroma as the CPU's
            )
            return pixels, fn.peek_image_shape(encoded)

        def graph() -> tuple[Any, ...]:
            pixels, *shapes = pixels_and_shapes()
            if self.native != self.size:
                interpolation = types.INTERP_NN if self.labels else types.INTERP_LINEAR
                pixels = fn.resize(pixels, size=list(self.size), interp_type=interpolation, antialias=True)
            return self._patches(fn, pixels), *shapes

        pipeline = dali.pipeline_def(
            graph,
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=number(self.device) if mixed else None,
            prefetch_queue_depth=_PREFETCH,
        )()
        pipeline.build()
        return pipeline

    def _patches(self, fn: Any, pixels: Any) -> Any:
        grid, channels = self.grid, 1 if self.labels else 3
        if grid is None:
            return pixels
        height, width = grid.patch_height, grid.patch_width
        pixels = fn.reshape(pixels, shape=[grid.rows, height, grid.columns, width, channels], layout="")
        pixels = fn.transpose(pixels, perm=[0, 2, 1, 3, 4])
        return fn.reshape(pixels, shape=[grid.patches_per_image, height, width, channels], layout="")

    def _palette_batches(self, begin: int) -> Iterator[list[NDArray[np.uint8]]]:
        for start in range(begin, len(self.paths), self.batch_size):
            files = self.paths[start : start + self.batch_size]
            arrays = []
            for path in files:
                self._check_kind(path)
                arrays.append(decode(path))
                self._check_size(path, arrays[-1].shape[:2])
            arrays += arrays[-1:] * (self.batch_size - len(arrays))
            yield [array[..., None] for array in arrays]

    def _check_files(self, files: list[Path], shapes: NDArray[np.int64]) -> None:
        for path, shape in zip(files, shapes[:, :2], strict=False):
            self._check_size(path, shape)
            if self.labels:
                self._check_kind(path)

    def _check_size(self, path: Path, shape: Sequence[int] | NDArray[np.int64]) -> None:
        found = (int(shape[0]), int(shape[1]))
        if found != self.native:
            raise DataError(
                f"{path}: {found[0]}×{found[1]} pixels (height × width) found, "
                f"{self.native[0]}×{self.native[1]} expected as in the rest of the split; "
                f"resize the file or remove it"
            )

    def _check_kind(self, path: Path) -> None:
        kind = label_kind(path)
        if kind != self._kind:
            raise DataError(
                f"{path}: a {kind} PNG, but {self.paths[0]} is a {self._kind} PNG; "
                f"store all labels of a split the same way"
            )

    def _explain(self, files: list[Path], error: RuntimeError) -> DataError:
        for path in files:
            try:
                decode(path)
            except DataError as cause:
                return cause
        names = ", ".join(map(str, files[:3])) + ", …" * (len(files) > 3)
        return DataError(
            f"DALI cannot decode one of {len(files)} files ({names}), though Pillow can: {error}"
        )


def decode(path: Path) -> NDArray[np.uint8]:
    """Decode a whole file with Pillow: [H, W] for grey and palette files, else [H, W, 3] uint8.

    Raises:
        DataError: the file is missing, truncated or damaged.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return np.asarray(image if image.mode in ("L", "P") else image.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: truncated or damaged ({error}); replace the file") from error


def _check_grid(grid: Grid, size: Size) -> None:
    if (grid.height, grid.width) != size:
        raise InputError(
            f"the grid is for {grid.height}×{grid.width} pixels, the batches are {size[0]}×{size[1]}"
        )
    if (grid.rows * grid.patch_height, grid.columns * grid.patch_width) != size:
        raise InputError(
            f"{grid.rows}×{grid.columns} patches do not divide {size[0]}×{size[1]} pixels evenly; "
            f"patches of one batch must have one size, so load whole images and cut those"
        )


def _import_dali() -> Any:
    try:
        from nvidia import dali
    except ImportError as error:
        raise UnavailableError(
            "the loader needs NVIDIA DALI, which is not installed: pip install nvidia-dali-cuda130"
        ) from error
    return dali
