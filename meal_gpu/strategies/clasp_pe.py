"""ClaSP PE: by turns from every predicted class, drawn by entropy, with less noise step after step."""

from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.class_random import round_robin
from meal_gpu.strategies.power import noised


def select(pool: Pool) -> Selection:
    counts = pool.classes().counts
    # The schedule: by step k the weights are entropy^k, ever closer to taking the highest
    values = noised(pool.uncertainty("entropy"), pool, coldness=float(pool.step))
    turns = pool.uniforms("turns of the classes", counts.shape[1]).to(values.device, non_blocking=True)
    order = round_robin(counts.argmax(dim=1)[pool.unlabelled], values[pool.unlabelled], turns)
    return Selection(pool.unlabelled[order[: pool.n]], values)


STRATEGY = Strategy(
    name="clasp-pe",
    summary="by turns from every dominant predicted class, drawn by entropy^k in step k",
    source="after Lüth et al. 2026, with a schedule of our own",
    choice=select,
    needs=("classes",),
)
