"""ClaSP PE: by turns from every predicted class, drawn by entropy, with less noise step after step."""

from meal_gpu.strategies.base import Pool, Selection, Strategy
from meal_gpu.strategies.class_random import by_class
from meal_gpu.strategies.power import noised


def select(pool: Pool) -> Selection:
    # The schedule: by step k the weights are entropy^k, ever closer to taking the highest
    values = noised(pool.uncertainty("entropy"), pool, coldness=float(pool.step))
    return Selection(by_class(pool, values[pool.unlabelled]), values)


STRATEGY = Strategy(
    name="clasp-pe",
    summary="by turns from every dominant predicted class, drawn by entropy^k in step k",
    source="after Lüth et al. 2026, with a schedule of our own",
    choice=select,
    needs=("classes",),
)
