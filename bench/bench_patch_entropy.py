"""Mean entropy per patch from stride-4 logits: ours against full-size softmax."""

import torch
import torch.nn.functional as F

from bench.harness import Row, measure
from meal_gpu.grid import Grid
from meal_gpu.ops import select_for


def run(device: torch.device) -> list[Row]:
    ours = select_for(device)
    rows = []
    for height, width, classes in ((360, 480, 11), (512, 1024, 19)):
        logits = torch.randn(4, classes, height // 4, width // 4, generator=torch.Generator().manual_seed(0))
        logits = logits.to(device)
        grid = Grid(4, 4, height, width)

        def full_size(logits: torch.Tensor = logits, grid: Grid = grid) -> torch.Tensor:
            size = (grid.height, grid.width)
            log_p = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).log_softmax(1)
            entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
            return F.avg_pool2d(entropy, (grid.patch_height, grid.patch_width)).flatten(1)

        def fused(logits: torch.Tensor = logits, grid: Grid = grid) -> torch.Tensor:
            return ours.patch_entropy(logits, grid, (grid.height, grid.width), True)

        torch.testing.assert_close(fused(), full_size(), atol=1e-4, rtol=0)
        sizes = {"images": 4, "height": height, "width": width, "classes": classes}
        rows += measure(
            "patch_entropy", sizes, {f"{ours.name} ops": fused, "full-size log_softmax": full_size}, device
        )
    return rows
