"""The same query on the CPU and on the GPU: `python -m bench.parity` draws the built-in dataset and compares.

Scores should agree to rounding. UMAP is chaotic in the last digit of its input, so the choice of MEAL is
compared on one embedding too, where the chosen patches must be the same. Exit code 1 where they are not, or
where the scores differ by more than `TOLERANCE`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from meal_gpu import data, ops, rng
from meal_gpu.acquisition import acquire
from meal_gpu.models import Builder
from meal_gpu.record import environment

TOLERANCE = 1e-3  # nats; float32 convolutions of another order of summation


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.parity", description=__doc__)
    parser.add_argument("--device", default="cuda", help="compared with the CPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 is meant
    dataset = data.open_dataset("synthetic")
    images = data.load_images(dataset.train, dataset.size)
    model = Builder("smp", len(dataset.classes), "none")(0)
    rows, n, apart = [], 32, False
    for strategy in ("entropy", "meal"):
        here, there = (
            acquire(model.to(where), images.to(where), n, strategy=strategy, precision="float32")
            for where in (torch.device("cpu"), device)
        )
        assert here.pool_scores is not None and there.pool_scores is not None
        row: dict[str, Any] = {
            "case": "parity", "strategy": strategy, "patches": len(here.pool_scores),
            "score_difference": float((here.pool_scores - there.pool_scores).abs().max()),
            "same_chosen": len(set(here.patch_ids.tolist()) & set(there.patch_ids.tolist())),
            "of": len(here),
        }  # fmt: skip
        if here.candidates is not None and there.candidates is not None:
            both = set(here.candidates[0].tolist()) & set(there.candidates[0].tolist())
            draws = rng.uniforms(0, 1, "kmeans_plusplus", n)[:, None]
            embedding = here.candidates[1]
            chosen = ops.select("reference").kmeans_plusplus(embedding, draws, None)
            again = ops.select_for(device).kmeans_plusplus(embedding.to(device), draws, None)
            row |= {
                "same_candidates": len(both),
                "same_chosen_of_one_embedding": int((chosen == again.cpu()).sum()),
            }
        rows.append(row)
        print(json.dumps(row))
        apart |= row["score_difference"] > TOLERANCE or row.get("same_chosen_of_one_embedding", n) < n
    with given.out.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | environment(device)) + "\n")
    if apart:
        raise SystemExit("bench.parity: the CPU and the device make other queries of the same numbers")


if __name__ == "__main__":
    main()
