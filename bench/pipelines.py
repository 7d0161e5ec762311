"""Whole acquisitions as a user would put them together from libraries, part by part; any part can be ours.

Generous to the peers: one pass over the files serves scores and the features of all patches.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bench.bench_decode import by_threads, opencv, pillow
from bench.bench_patch_entropy import log_softmax
from meal_gpu import ops
from meal_gpu.grid import Grid
from meal_gpu.images.headers import image_size
from meal_gpu.images.loader import Loader
from meal_gpu.inference import Graphed, autocast, default_precision, for_inference
from meal_gpu.manifold import Manifold
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD, Segmenter
from meal_gpu.ops.reference import normalise
from meal_gpu.passes import default_batch
from meal_gpu.scoring import pool_features
from meal_gpu.timing import Stages

CANDIDATES, N = 200, 32

Given = Sequence[Path] | torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """`patches` [32] and `candidates` [200] ids, `embedding` [200, 2] of the latter, all on the CPU."""

    patches: torch.Tensor
    candidates: torch.Tensor
    embedding: torch.Tensor


@dataclass(frozen=True)
class Network:
    """`logits`: [B, 3, H, W] -> [B, C, h, w]; `features`: crops [M, 3, h, w] -> [M, D]."""

    logits: Callable[[torch.Tensor], torch.Tensor]
    features: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Pipeline:
    """The parts, each as the library's documentation shows it.

    Attributes:
        decode: (files, device) -> normalised [B, 3, H, W] batches on the device.
        network: (model, device) -> `Network`.
        entropy: ([B, C, h, w], grid) -> [B, patches].
        fit: [P, D] -> the map of new rows [K, D] -> [K, 2].
        seed: ([M, 2], n) -> [n] rows.
    """

    decode: Callable[[Sequence[Path], torch.device], Iterator[torch.Tensor]]
    network: Callable[[Segmenter, torch.device], Network]
    entropy: Callable[[torch.Tensor, Grid], torch.Tensor]
    fit: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
    seed: Callable[[torch.Tensor, int], torch.Tensor]

    @torch.inference_mode()
    def __call__(
        self, images: Given, grid: Grid, network: Network, device: torch.device, stages: Stages
    ) -> Outcome:
        batches = _resident(images) if isinstance(images, torch.Tensor) else self.decode(images, device)
        scores, features = [], []
        while True:
            with stages("load"):
                batch = next(batches, None)
            if batch is None:
                break
            with stages("network"):
                logits = network.logits(batch)
            with stages("entropy"):
                scores.append(self.entropy(logits, grid))
            with stages("features"):
                features.append(network.features(_crops(batch, grid)))
        with stages("select"):
            candidates = torch.cat(scores).flatten().topk(CANDIDATES).indices
        with stages("fit"):
            pool = torch.cat(features)
            transform = self.fit(pool)
        with stages("transform"):
            embedding = transform(pool[candidates])
        with stages("choose"):
            rows = self.seed(embedding, N)
            chosen = candidates[torch.as_tensor(rows, device=candidates.device)].cpu()
        return Outcome(chosen, candidates.cpu(), embedding.cpu())


def _resident(images: torch.Tensor) -> Iterator[torch.Tensor]:
    for batch in images.split(default_batch(images.device)):
        yield normalise(batch, IMAGENET_MEAN, IMAGENET_STD)


def _crops(batch: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[B, 3, H, W] -> [B * patches, 3, h, w]."""
    cut = batch.unfold(2, grid.patch_height, grid.patch_height).unfold(3, grid.patch_width, grid.patch_width)
    crops = cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return crops.contiguous(memory_format=torch.channels_last)


class _Files(Dataset[torch.Tensor]):
    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return normalise(pillow(self._paths[index])[None], IMAGENET_MEAN, IMAGENET_STD)[0]


def by_data_loader(paths: Sequence[Path], device: torch.device) -> Iterator[torch.Tensor]:
    """Pillow, in a process for each core, which normalises as well, as ToTensor and Normalize would."""
    loader = DataLoader(
        _Files(paths), default_batch(device), num_workers=len(os.sched_getaffinity(0)),
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    return (batch.to(device, non_blocking=True) for batch in loader)


def by_opencv(paths: Sequence[Path], device: torch.device) -> Iterator[torch.Tensor]:
    """In threads: forking processes would slow the rest, on a CPU by more than decoding takes."""
    for batch in by_threads(opencv, default_batch(device), paths, device):
        yield normalise(batch, IMAGENET_MEAN, IMAGENET_STD)


def by_dali(paths: Sequence[Path], device: torch.device) -> Iterator[torch.Tensor]:
    loader = Loader(paths, image_size(paths[0]), device=device, batch_size=default_batch(device))
    return (normalise(batch, IMAGENET_MEAN, IMAGENET_STD) for batch in loader)


def eager(precision: str, compile: bool, model: Segmenter, device: torch.device) -> Network:
    """The trained network as it is, or compiled."""
    whole: Callable[..., Any] = model
    encode: Callable[..., Any] = model.features
    if compile:
        torch.compiler.reset()
        mode = "reduce-overhead" if device.type == "cuda" else None
        whole, encode = (torch.compile(each, mode=mode, dynamic=False) for each in (whole, encode))

    def call(function: Callable[[torch.Tensor], Any], images: torch.Tensor) -> Any:
        with autocast(device, precision):
            return function(images.contiguous(memory_format=torch.channels_last))

    return Network(
        lambda images: call(whole, images).logits, lambda crops: pool_features(call(encode, crops))
    )


def ready(model: Segmenter, device: torch.device) -> Network:
    """Ours on a GPU: folded, cast once, captured with the first batch, which is the largest."""
    precision = default_precision(device)
    prepared = for_inference(model, precision, device)

    graph: Graphed | None = None

    def logits(images: torch.Tensor) -> torch.Tensor:
        nonlocal graph
        if graph is None:
            graph = Graphed(prepared, images, precision)
        return graph(images).logits

    def features(crops: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return pool_features(prepared.features(crops))

    return Network(logits, features)


def our_entropy(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    return ops.select_for(logits.device).patch_entropy(logits, grid, (grid.height, grid.width), True)


def compiled_entropy() -> Callable[[torch.Tensor, Grid], torch.Tensor]:
    form: Callable[[torch.Tensor, Grid], torch.Tensor] = torch.compile(log_softmax, dynamic=False)
    return form


def umap_learn(seed: int | None, features: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    from umap import UMAP

    model = UMAP(random_state=seed, n_jobs=1 if seed is not None else -1).fit(features.cpu().numpy())
    return lambda rows: torch.from_numpy(model.transform(rows.cpu().numpy())).to(rows.device)


def cuml_umap(features: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    from cuml.manifold import UMAP

    model = UMAP(output_type="cupy").fit(features)
    torch.cuda.synchronize(features.device)  # it has a stream of its own, which our events do not see

    def transform(rows: torch.Tensor) -> torch.Tensor:
        # It takes rows that begin at the fitted address for the fitted ones
        embedding = torch.as_tensor(model.transform(rows.clone()), device=rows.device)
        torch.cuda.synchronize(rows.device)
        return embedding

    return transform


def our_umap(features: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return Manifold.fit(features, seed=0).transform


def scikit_learn(embedding: torch.Tensor, n: int) -> torch.Tensor:
    from sklearn.cluster import kmeans_plusplus

    return torch.from_numpy(kmeans_plusplus(embedding.cpu().numpy(), n, random_state=0)[1])


def our_seeding(embedding: torch.Tensor, n: int) -> torch.Tensor:
    draws = torch.rand(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ops.select_for(embedding.device).kmeans_plusplus(embedding, draws.to(embedding.device), None)


PLAIN = Pipeline(
    decode=by_data_loader, network=partial(eager, "float32", False),
    entropy=log_softmax, fit=partial(umap_learn, 0), seed=scikit_learn,
)  # fmt: skip
SKILLED = Pipeline(
    decode=by_opencv, network=partial(eager, "bfloat16", False),
    entropy=log_softmax, fit=partial(umap_learn, None), seed=scikit_learn,
)  # fmt: skip
