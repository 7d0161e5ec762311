"""Images behind URLs: fetched many at once, a chunk ahead of the decoder, and never all of them."""

import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from meal_gpu.errors import DataError
from meal_gpu.images.content import aside, contents, is_url
from meal_gpu.images.headers import Size, image_size
from meal_gpu.images.loader import Loader
from meal_gpu.images.sources import at_once

CHUNK = 64
"""Files fetched together; two such chunks are on the disk at most."""


class Remote:
    """Image files behind fsspec URLs, fetched and decoded in every pass: memory does not grow with the pool.

    The pixels and batches are those that `sources.Streamed` gives for the same files. The files pass through
    a temporary folder (`TMPDIR`), which is gone when a pass ends, however it ends.

    Args:
        files: URLs, or paths of local files, all of one native size.
        size: working (height, width); files of another size are resized. None: that of the first file.
        device: where they are decoded, and batches arrive.
        chunk: files fetched together, at least.

    Raises:
        DataError: no files, or the first cannot be fetched or is no image.
        UnavailableError: the package for a URL's protocol is missing.
    """

    resident: torch.Tensor | None = None

    def __init__(
        self, files: Sequence[str], size: Size | None, device: torch.device, *, chunk: int = CHUNK
    ) -> None:
        if not files:
            raise DataError("no images to load")
        self._files = tuple(files)
        self._chunk = chunk
        self.device = self._decoder = device
        with tempfile.TemporaryDirectory(prefix="meal-gpu-") as folder:
            part = _fetched(self._files[:1], Path(folder))
            try:
                self.native = image_size(part.paths[0])
            except DataError as error:
                raise part.named(error) from error
        self.size = size or self.native

    def __len__(self) -> int:
        return len(self._files)

    def at(self, device: torch.device) -> "Remote":
        """The same images, decoded where they were, for another device; nothing is fetched."""
        other = copy.copy(self)
        other.device = device
        return other

    def batches(self, batch_size: int, of: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        files = self._files if of is None else [self._files[number] for number in of.tolist()]
        # Whole batches, so that none is put together from two chunks
        length = batch_size * -(-self._chunk // batch_size)
        starts = range(0, len(files), length)
        with ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meal-gpu-")))
            pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="meal-gpu-fetch")
            stack.callback(pool.shutdown, cancel_futures=True)  # before its folder goes
            fetch = [(files[start : start + length], root / str(start)) for start in starts]
            ahead = pool.submit(_fetched, *fetch[0])
            for following in [*fetch[1:], None]:
                part = ahead.result()
                if following is not None:
                    ahead = pool.submit(_fetched, *following)
                yield from self._decoded(part, batch_size)
                part.remove()

    def _decoded(self, part: "_Fetched", batch_size: int) -> Iterator[torch.Tensor]:
        together = min(at_once(batch_size), len(part.paths))
        loader = Loader(part.paths, self.size, device=self._decoder, batch_size=together, native=self.native)
        decoded = iter(loader)
        while True:
            try:
                images = next(decoded, None)
            except DataError as error:
                raise part.named(error) from error
            if images is None:
                return
            yield from torch.split(images.to(self.device), batch_size)


class _Fetched:
    """Files of a chunk: local ones where they are, the others in `folder`."""

    def __init__(self, files: Sequence[str], paths: Sequence[Path], folder: Path) -> None:
        self.paths = paths
        self._files = files
        self._folder = folder

    def named(self, error: DataError) -> DataError:
        """The error with URLs in place of the paths that they had for a while."""
        message = str(error)
        for file, path in zip(self._files, self.paths, strict=True):
            message = message.replace(str(path), file)
        return DataError(message)

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def _fetched(files: Sequence[str], folder: Path) -> _Fetched:
    """Fetch what is remote into `folder`, all files of a file system at once."""
    folder.mkdir(exist_ok=True)
    paths = [aside(folder, place, file) if is_url(file) else Path(file) for place, file in enumerate(files)]
    remote = [place for place, file in enumerate(files) if is_url(file)]
    for place, content in zip(remote, contents([files[place] for place in remote]), strict=True):
        paths[place].write_bytes(content)
    return _Fetched(files, paths, folder)
