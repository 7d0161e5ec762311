"""What could part our figures from the paper's: `python -m bench.gap --root CAMVID --encoder-weights FILE`.

One training of the last step's size on patches drawn at random, with one thing changed at a time, judged on
whole validation images and on their patches alone.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from bench import harness
from meal_gpu import config as configs
from meal_gpu import data, rng
from meal_gpu.evaluate import Evaluation, evaluate
from meal_gpu.grid import Grid
from meal_gpu.learner import new_model, schedule_of
from meal_gpu.models import Encoded, Segmenter
from meal_gpu.ops.reference import patch_of_pixels
from meal_gpu.passes import ImageSet
from meal_gpu.preparation import Experiment, Silent, cache_bytes, load, resolve
from meal_gpu.record import environment
from meal_gpu.train import train

VARIANTS = {
    "as it is": "patches alone, padded with zeros; the frozen encoder's BatchNorm in eval mode",
    "batch statistics": "the frozen encoder's BatchNorm in train mode",
    "edges repeated": "padded with the outermost pixels, in training and validation",
    "whole images": "whole images, in which only the labelled patches count; each image is one sample",
    "context": "patches within their whole images, as the key of that name",
    "fine-tuned": "the encoder is trained too",
}


class _Edges(Segmenter):
    def encode(self, images: torch.Tensor) -> Encoded:
        height, width = self.padded_size((images.shape[2], images.shape[3]))
        spare = (0, width - images.shape[3], 0, height - images.shape[2])
        return super().encode(F.pad(images, spare, mode="replicate"))


def cut(images: torch.Tensor, grid: Grid) -> torch.Tensor:
    """[N, H, W, ...] -> [N * P, h, w, ...]; the grid divides H×W evenly."""
    height, width = grid.patch_height, grid.patch_width
    parts = images.unflatten(1, (grid.rows, height)).unflatten(3, (grid.columns, width)).transpose(2, 3)
    return parts.flatten(0, 2).contiguous()


def only(labels: torch.Tensor, patches: torch.Tensor, grid: Grid, void: int) -> torch.Tensor:
    """The labels [N, H, W] of these patches; elsewhere `void`."""
    asked = torch.zeros((len(labels), grid.patches_per_image), dtype=torch.bool, device=labels.device)
    asked.view(-1)[patches.to(labels.device)] = True
    return labels.where(asked[:, patch_of_pixels(grid, labels.device)], void)


def trained(
    experiment: Experiment, variant: str, seed: int, count: int, epochs: int
) -> list[dict[str, float]]:
    """mIoU after each epoch: `whole` of whole images, `patches` of patches alone."""
    oracle, config, grid = experiment.oracle, experiment.config, experiment.grid
    model = new_model(experiment, seed)
    order = rng.stream(seed, 0, "bench/gap").permutation(len(oracle.labels) * grid.patches_per_image)
    patches = torch.from_numpy(order)[:count]
    if variant in ("batch statistics", "fine-tuned"):
        model.encoder.requires_grad_(variant == "fine-tuned")
        model.frozen = False
    elif variant == "edges repeated":
        model.__class__ = _Edges
    elif variant == "context":
        oracle = replace(oracle, context="image")
    elif variant == "whole images":
        seen = only(oracle.labels, patches, grid, oracle.void)
        patches = (patches // grid.patches_per_image).unique()
        oracle = replace(oracle, labels=seen, grid=Grid(1, 1, grid.height, grid.width))
    images, labels = experiment.validation.images, experiment.validation_labels
    assert images.resident is not None
    # Sets of their own, for what a frozen encoder made is kept in them, and variants have other encoders
    judged = {
        name: (
            ImageSet(given, oracle.ops, precision=config.precision, cache_bytes=cache_bytes(config)),
            truth,
        )
        for name, given, truth in (
            ("whole", images, labels),
            ("patches", cut(images.resident, grid), cut(labels, grid)),
        )
    }
    rows: list[dict[str, float]] = []

    def validate() -> Evaluation:
        found = {name: evaluate(*each, model, data.VOID) for name, each in judged.items()}
        rows.append({name: each.mean_iou for name, each in found.items()})
        return found["whole"]

    train(model, patches, oracle, schedule_of(config, epochs), seed=seed, step=0, validate=validate)
    return rows


def main(
    root: Annotated[Path, typer.Option()],
    encoder_weights: Annotated[str, typer.Option()] = "imagenet",
    architecture: Annotated[str, typer.Option()] = "paper",
    variant: Annotated[list[str] | None, typer.Option(help=f"Of: {', '.join(VARIANTS)}.")] = None,
    seeds: Annotated[int, typer.Option()] = 3,
    count: Annotated[int, typer.Option(help="Labelled patches.")] = 288,
    epochs: Annotated[int, typer.Option()] = 32,
    out: Annotated[Path | None, typer.Option(help="JSON lines, appended.")] = None,
) -> None:
    if unknown := set(variant or ()) - set(VARIANTS):
        raise typer.BadParameter(f"unknown variant {min(unknown)}; known: {', '.join(VARIANTS)}")
    base = configs.PRESETS["camvid"].replace(
        context="patch", root=str(root), encoder_weights=encoder_weights, architecture=architecture,
        device="auto",
    )  # fmt: skip
    experiment = load(resolve(base), Silent())
    for name in variant or VARIANTS:
        for seed in range(seeds):
            rows = trained(experiment, name, seed, count, epochs)
            row = {"variant": name, "seed": seed, "patches": count, "architecture": architecture}
            for key in ("whole", "patches"):
                figures = [each[key] for each in rows]
                row[f"{key}: best"] = max(figures)
                last = figures[-max(1, epochs // 4) :]
                row[f"{key}: mean of the last quarter"] = sum(last) / len(last)
            print(json.dumps(row), flush=True)
            if out is not None:
                command = ["python", "-m", "bench.gap", "--variant", name]
                known = environment(experiment.pool.device) | {"command": command}
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | known) + "\n")


if __name__ == "__main__":
    harness.told(lambda: typer.run(main))
