"""Mean entropy per patch from stride-4 logits: ours against full-size softmax, plain and compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from bench.ceiling import Work
from bench.harness import Case
from meal_gpu.grid import Grid
from meal_gpu.ops import reference, select_for
from meal_gpu.ops.upsampling import tiling

# The CUDA kernel's own count: four fused operations for a pixel and class, ten for a cell; and two
# exponentials for up to four pixels in a row
PIXEL_SLOTS, CELL_SLOTS, ROW_EXPONENTIALS = 4, 10, 2
# On a CPU: upsampling and two sums, and one exponential, of each
CPU_SLOTS, CPU_EXPONENTIALS = 3, 1


def softmax_log(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    """As research code has it: softmax, then its logarithm."""
    p = full_size(logits, grid).softmax(dim=1)
    return patch_means(-(p * (p + 1e-12).log()).sum(dim=1, keepdim=True), grid)


def log_softmax(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    log_p = full_size(logits, grid).log_softmax(dim=1)
    return patch_means(-(log_p.exp() * log_p).sum(dim=1, keepdim=True), grid)


def baal_entropy(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    """baal's heuristic, which wants probabilities as an array with an axis of passes, on each patch."""
    from baal.active.heuristics import Entropy

    p = full_size(logits, grid).softmax(dim=1)
    patches = p.unfold(2, grid.patch_height, grid.patch_height).unfold(3, grid.patch_width, grid.patch_width)
    array = patches.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).cpu().numpy()[..., None]
    return torch.from_numpy(Entropy(reduction="mean").get_uncertainties(array)).view(len(logits), -1)


def full_size(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    size = (grid.height, grid.width)
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=True)


def patch_means(pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
    return F.avg_pool2d(pixels, (grid.patch_height, grid.patch_width)).flatten(1)


def work(logits: torch.Tensor, grid: Grid) -> Work:
    images, classes = logits.shape[:2]
    moved = logits.nbytes + 4 * images * grid.patches_per_image
    pixels = images * classes * grid.height * grid.width
    if logits.device.type != "cuda":
        return Work(moved, vector_flops=2 * CPU_SLOTS * pixels, special=CPU_EXPONENTIALS * pixels)
    size = (grid.height, grid.width)
    low = (int(logits.shape[2]), int(logits.shape[3]))
    plan = tiling(grid, low, size, True, classes, 1, logits.device)
    rows = images * classes * len(plan.x.spans) * grid.height
    cells = images * classes * len(plan.x.spans) * len(plan.y.spans)
    slots = PIXEL_SLOTS * pixels + CELL_SLOTS * cells
    return Work(moved, vector_flops=2 * slots, special=ROW_EXPONENTIALS * rows)


def cases(device: torch.device) -> Iterator[Case]:
    ours = select_for(device)
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.bfloat16
    sizes = ((4, 360, 480, 11), (4, 512, 1024, 19))
    for images, height, width, classes in (*sizes, (32, 512, 1024, 19)) if on_gpu else sizes:
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(images, classes, height // 4, width // 4, generator=generator)
        planar = logits.to(device, dtype)
        last = planar.contiguous(memory_format=torch.channels_last)
        grid = Grid(4, 4, height, width)
        contenders: dict[str, Callable[[], object]] = {
            f"ours, {ours.name} ops": lambda last=last, grid=grid: ours.patch_entropy(
                last, grid, (grid.height, grid.width), True
            )
        }
        if ours is not reference:
            contenders["ours, reference ops"] = lambda last=last, grid=grid: reference.patch_entropy(
                last, grid, (grid.height, grid.width), True
            )
        torch.compiler.reset()
        mode = "max-autotune-no-cudagraphs" if on_gpu else None
        compiled = torch.compile(log_softmax, mode=mode, dynamic=False)
        forms: dict[str, tuple[Callable[[torch.Tensor, Grid], torch.Tensor], torch.Tensor]] = {
            "eager, softmax and log": (softmax_log, last),
            "eager, log_softmax": (log_softmax, last),
            "torch.compile, NCHW": (compiled, planar),
            "torch.compile, channels-last": (compiled, last),
            "baal": (baal_entropy, last),
        }
        for name, (form, given) in forms.items():
            contenders[name] = lambda form=form, given=given, grid=grid: form(given, grid)
        if images > 4:
            del contenders["baal"]  # of which a call takes as long as all others together
        exact = log_softmax_in_float64(planar, grid)

        def quality(name: str, result: Any, exact: torch.Tensor = exact) -> dict[str, Any]:
            return {"largest error, nats": float((result.to(exact) - exact).abs().max())}

        yield Case(
            "patch_entropy",
            {
                "images": images, "height": height, "width": width, "classes": classes,
                "dtype": str(dtype).removeprefix("torch."),
            },
            contenders,
            work(last, grid),
            quality=quality,
        )  # fmt: skip


def log_softmax_in_float64(logits: torch.Tensor, grid: Grid) -> torch.Tensor:
    """What all should give; image by image, for its size."""
    return torch.cat([reference.patch_entropy(each[None].double(), grid, (grid.height, grid.width), True)
                      for each in logits])  # fmt: skip
