"""The network alone, on whole images: as trained, under autocast, made ready, captured or compiled."""

from collections.abc import Callable

import torch

from bench.harness import Row, measure
from meal_gpu.inference import Graphed, autocast, default_precision, for_inference
from meal_gpu.models import Builder


def run(device: torch.device) -> list[Row]:
    on_gpu = device.type == "cuda"
    batch, height, width = (8, 512, 1024) if on_gpu else (2, 256, 512)
    precision = default_precision(device)
    model = Builder("smp", 19, "none")(0).to(device).eval()
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(
        device, memory_format=torch.channels_last
    )
    ready = for_inference(model, precision)

    def plain(precision: str) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode(), autocast(device, precision):
                return model(images)

        return call

    def made_ready() -> object:
        with torch.inference_mode(), autocast(device, precision):
            return ready(images)

    contenders = {
        "eager, float32": plain("float32"),
        f"eager, {precision}": plain(precision),
        f"ready, {precision}": made_ready,
    }
    if on_gpu:
        compiled = torch.compile(ready, mode="max-autotune")  # type: ignore[call-overload]

        def compiled_pass() -> object:
            with torch.inference_mode(), autocast(device, precision):
                return compiled(images)

        with torch.inference_mode():
            graphed = Graphed(ready, images, precision)
        contenders |= {
            f"ready, CUDA graph, {precision}": lambda: graphed(images),
            f"ready, torch.compile, {precision}": compiled_pass,
        }
    sizes = {"images": batch, "height": height, "width": width, "classes": 19}
    return measure("forward", sizes, contenders, device)
