"""K-Means++ seeding: the reference ops against scikit-learn, plain D² sampling both."""

import torch
from sklearn.cluster import kmeans_plusplus as peer

from bench.harness import Row, measure
from meal_gpu.ops import reference


def run() -> list[Row]:
    rows = []
    for points, n in ((200, 32), (100_000, 32)):
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(points, 2, generator=generator)
        draws = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        array = values.numpy()

        def ours(values: torch.Tensor = values, draws: torch.Tensor = draws) -> object:
            return reference.kmeans_plusplus(values, draws, None)

        def theirs(array: object = array, n: int = n) -> object:
            return peer(array, n, n_local_trials=1, random_state=0)

        contenders = {"reference ops": ours, "scikit-learn": theirs}
        rows += measure("kmeans_plusplus", {"points": points, "n": n}, contenders)
    return rows
