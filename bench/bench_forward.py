"""The network alone, on whole images: as trained, under autocast, compiled, and as the engine runs it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.ceiling import Work
from bench.harness import Case, without_tf32
from meal_gpu.inference import Graphed, autocast, default_precision, for_inference
from meal_gpu.models import Builder, Segmenter
from meal_gpu.passes import default_batch

CLASSES, HEIGHT, WIDTH = 19, 512, 1024


class Traffic(TorchDispatchMode):
    """Bytes that the layers move if each reads its inputs once and writes its output once.

    Only what no fusion of neighbours can avoid counts: convolutions, upsampling, concatenation and pooling;
    activations and normalisation go with the layer before.
    """

    LAYERS = ("convolution", "upsample", "cat", "mean", "adaptive_avg_pool")

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(layer in func.__name__ for layer in self.LAYERS):
            given = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
            tensors = [x for x in (*given, result) if isinstance(x, torch.Tensor)]
            self.elements += sum(x.numel() for x in tensors)
        return result


def work(model: Segmenter, images: torch.Tensor, precision: str) -> Work:
    one = images[:1].cpu().float()
    plain = Builder("smp", CLASSES, "none")(0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as operations, Traffic() as traffic:
        plain(one)
    itemsize = 4 if precision == "float32" else 2
    count = len(images)
    return Work(
        count * itemsize * traffic.elements,
        count * operations.get_total_flops(),
        precision=precision,
    )


def cases(device: torch.device) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    batch = 8
    precision = default_precision(device)
    model = Builder("smp", CLASSES, "none")(0).to(device).eval()
    images = torch.randn(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    images = images.to(device, memory_format=torch.channels_last)
    ready = for_inference(model, precision, device)

    def calling(network: Any, precision: str) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.inference_mode(), autocast(device, precision):
                parts = images.split(default_batch(device))
                return torch.cat([network(part).logits.clone() for part in parts])

        return call

    contenders: dict[str, Callable[[], object]] = {}
    if on_gpu:
        with torch.inference_mode():
            graphed = Graphed(ready, images, precision)
        contenders["ours, CUDA graph"] = calling(graphed, "float32")
        contenders["ours, no graph"] = calling(ready, precision)
    else:
        contenders["ours"] = calling(ready, precision)
    torch.compiler.reset()
    compiled = torch.compile(model, mode="reduce-overhead" if on_gpu else None, dynamic=False)
    for each in dict.fromkeys(("float32", precision)):
        contenders[f"eager, {each}"] = calling(model, each)
    contenders[f"torch.compile, {precision}"] = calling(compiled, precision)
    with without_tf32():
        exact = calling(model, "float32")()

    def quality(name: str, result: Any) -> dict[str, Any]:
        error = (result.float() - exact).norm() / exact.norm()
        return {"relative error": float(f"{float(error):.2g}")}

    yield Case(
        "forward",
        {
            "images": batch, "height": HEIGHT, "width": WIDTH, "classes": CLASSES, "precision": precision,
        },
        contenders,
        work(model, images, precision),
        quality=quality,
        seconds=8.0,
        least=3,
    )  # fmt: skip
