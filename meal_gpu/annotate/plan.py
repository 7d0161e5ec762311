"""How a query is asked."""

from dataclasses import dataclass, field
from pathlib import Path

from meal_gpu.adapters import Normalisation
from meal_gpu.annotate.budget import Budget
from meal_gpu.annotate.cost import CostModel
from meal_gpu.images.headers import Size
from meal_gpu.images.opening import SHARE
from meal_gpu.manifold import LIMIT
from meal_gpu.models import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class Plan:
    """How to ask; see `meal-gpu acquire --help`. Sizes are (height, width) in pixels."""

    budget: Budget
    strategy: str = "meal"
    measure: str = "entropy"
    seed: int = 0
    grid: tuple[int, int] = (4, 4)
    candidates: int | None = None  # as `pool.candidates_for` has it
    manifold_limit: int = LIMIT
    refit: bool = False  # Φ to what the pool holds now, where an earlier query fitted it to what it held then
    features: str = "crop"
    size: Size | None = None
    window: Size | None = None
    overlap: float = 0.25
    valid: Path | None = None
    classes: tuple[str, ...] | None = None
    cost: CostModel = field(default_factory=CostModel)
    pack: int = 1
    context: int = 0
    exclude: tuple[Path, ...] = ()
    layer: str | None = None
    made_by: tuple[object, ...] = ()  # what tells models apart beside their weights: factory and arguments
    mean: Normalisation = IMAGENET_MEAN
    std: Normalisation = IMAGENET_STD
    passes: int = 8
    temperature: float | None = None
    precision: str = "auto"
    device: str = "auto"
    ops: str = "auto"
    pool_share: float = SHARE
    on_bad: str = "stop"
    shard: int = 256  # frames that are scored and kept together
    cache: str | None = None  # place of what is known of the pool; None: beside its ledger
