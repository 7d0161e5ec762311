"""K-Means++ seeding: ours against scikit-learn on the CPU, plain D² sampling both."""

import torch
from sklearn.cluster import kmeans_plusplus as peer

from bench.harness import Row, measure
from meal_gpu.ops import select_for


def run(device: torch.device) -> list[Row]:
    ours_on = select_for(device)
    rows = []
    for points, n in ((200, 32), (100_000, 32)):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(points, 2, generator=generator)
        draws = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        array = values.numpy()
        values, draws = values.to(device), draws.to(device)

        def ours(values: torch.Tensor = values, draws: torch.Tensor = draws) -> object:
            return ours_on.kmeans_plusplus(values, draws, None)

        def theirs(array: object = array, n: int = n) -> object:
            return peer(array, n, n_local_trials=1, random_state=0)

        contenders = {f"{ours_on.name} ops": ours, "scikit-learn": theirs}
        rows += measure("kmeans_plusplus", {"points": points, "n": n}, contenders, device)
    return rows
