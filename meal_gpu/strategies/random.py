"""Patches drawn uniformly, without replacement: the baseline."""

from meal_gpu.strategies.base import Pool, Selection, Strategy


def select(pool: Pool) -> Selection:
    order = pool.uniforms("random", len(pool.unlabelled)).argsort(stable=True)
    return Selection(pool.unlabelled[order[: pool.n].to(pool.unlabelled.device, non_blocking=True)])


STRATEGY = Strategy(
    name="random",
    summary="patches drawn uniformly",
    source="baseline",
    choice=select,
)
