"""What a run does: one frozen, validated record; presets are the rows of the paper's Table 1."""

import contextlib
import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from meal_gpu.errors import ConfigError

SUPERVISED = "supervised"
_CHOICES = {
    "architecture": ("smp", "paper"),
    "keep": ("best", "last"),
    "features": ("crop", "shared"),
    "context": ("patch", "image"),
    "on_bad": ("stop", "skip"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "ops": ("auto", "reference", "cpu", "cuda"),
    "manifold_build": ("auto", "exact", "brute_force_knn", "nn_descent"),
}
# They say where the pool lies, not what is chosen from it or how it is trained on
PLACES = ("root", "cache_gib", "pool_share")
_POSITIVE = (
    "initial_images", "query_size", "candidates", "passes", "epochs", "validate_every", "manifold_dimension",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. Sizes are (height, width) in pixels; grids are (rows, columns); `budget` is a share in (0, 1].

    Raises:
        ConfigError: an impossible value, named with the allowed ones.
    """

    dataset: str = "synthetic"
    root: str | None = None
    size: tuple[int, int] | None = None  # working size; None: the dataset's own
    on_bad: str = "stop"  # skip: files that cannot be used are left out, and listed in quarantine.csv
    grid: tuple[int, int] = (4, 4)

    strategy: str = "meal"
    seed: int = 0
    initial_images: int = 2  # all patches of these are labelled at step 0
    query_size: int = 32  # N
    candidates: int = 200  # N_I
    measure: str = "entropy"  # that proposes candidates, see `meal-gpu strategies`
    passes: int = 8  # with dropout, for mc-entropy and bald
    members: int = 4  # of the ensemble, each of which is trained, for the measure of that name
    control_share: float = 0.0  # of a query, for patches drawn uniformly: an unbiased look at the pool
    features: str = "crop"  # of a patch's own pixels; shared: of the pass over whole images that scores them
    budget: float = 0.05  # share of the pool's patches; the number of steps is rounded to the nearest
    steps: int | None = None  # overrides budget

    architecture: str = "smp"
    encoder_weights: str = "imagenet"  # imagenet, none, or the path of a .safetensors file
    finetune: bool = False  # train the encoder as well
    epochs: int = 25
    final_epochs: int = 32  # after the last step; 0: as `epochs`
    batch_size: int = 8  # patches; images in a supervised run
    # What training sees around a labelled patch: its whole image, or nothing (patch). Patches alone, as the
    # paper can be read, lie far below its figures: see docs/EXPERIMENTS.md
    context: str = "image"
    learning_rate: float = 1e-3
    decay_every: int = 0  # epochs between multiplications of the rate by 0.1; 0: never
    keep: str = "best"  # the epoch with the best validation mIoU, or the last
    validate_every: int = 1  # epochs

    manifold_dimension: int = 2
    manifold_neighbors: int = 15
    manifold_min_dist: float = 0.1
    manifold_limit: int = 50_000  # of a larger pool Φ is fitted on one patch of every so many
    # Neighbours for UMAP: the library's choice, our exact search, or the library's exact or approximate one
    manifold_build: str = "auto"
    manifold_deterministic: bool = True  # one seed, one result; false: no seed, in parallel, faster

    precision: str = "auto"  # bfloat16 (autocast) where the hardware has it, float32 elsewhere
    pool_share: float = 0.5  # of free memory; a larger pool stays in host memory, or in its files
    cache_gib: float = 3.0  # memory for what a frozen encoder computes once
    device: str = "auto"
    ops: str = "auto"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key} is {value}; it must be finite")
        for key, known in _CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise ConfigError(f"{key} is {value!r}; known: {', '.join(known)}")
        require_device(self.device)
        if self.ops == "cuda" and self.device == "cpu":
            raise ConfigError(
                "ops 'cuda' cannot work with device 'cpu': use --device cuda, or --ops reference"
            )
        if self.ops == "cpu" and self.device.startswith("cuda"):
            raise ConfigError(
                f"ops 'cpu' cannot work with device {self.device!r}: use --device cpu, or --ops reference"
            )
        least = dict.fromkeys(_POSITIVE, 1) | {
            "seed": 0, "members": 2, "decay_every": 0, "final_epochs": 0, "manifold_neighbors": 2,
            "batch_size": 2,  # BatchNorm cannot train on one image
            "manifold_limit": self.manifold_dimension + 2,
        }  # fmt: skip
        if "bald" in (self.strategy, self.measure):
            least["passes"] = 2  # with one the mutual information is 0 everywhere
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least {bound}")
        if self.steps is not None and self.steps < 0:
            raise ConfigError(f"steps is {self.steps}; it must be at least 0")
        for key in ("size", "grid"):
            if (pair := getattr(self, key)) is not None and min(pair) < 1:
                raise ConfigError(f"{key} is {pair}; both numbers must be at least 1")
        if not 0 < self.budget <= 1:
            raise ConfigError(f"budget is {self.budget}; it is a share of the pool, above 0 and at most 1")
        if self.candidates < self.query_size:
            raise ConfigError(
                f"candidates is {self.candidates}, below query_size {self.query_size}: raise it"
            )
        if not 0 <= self.control_share < 1:
            raise ConfigError(f"control_share is {self.control_share}; it must be at least 0 and below 1")
        drawn = round(self.control_share * self.query_size)
        if self.control_share and not 0 < drawn < self.query_size:
            raise ConfigError(
                f"control_share is {self.control_share}: {drawn} of query_size {self.query_size} patches; "
                f"set it between {1 / self.query_size:.2g} and {1 - 1 / self.query_size:.2g}, or to 0"
            )
        if not 0 <= self.pool_share <= 1:
            raise ConfigError(f"pool_share is {self.pool_share}; it must be between 0 and 1")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not self.cache_gib >= 0:
            raise ConfigError(f"cache_gib is {self.cache_gib}; it must not be negative")
        if self.manifold_build == "nn_descent" and self.manifold_deterministic and self.ops == "cuda":
            raise ConfigError(
                "manifold_build is 'nn_descent', which cuML cannot repeat: "
                "set manifold_deterministic to false, or choose another build"
            )
        if not 0 <= self.manifold_min_dist <= 1:
            raise ConfigError(f"manifold_min_dist is {self.manifold_min_dist}; it must be between 0 and 1")

    def replace(self, **changes: Any) -> "Config":
        """A copy with `changes`, checked like a file's keys (unknown key, wrong type)."""
        return from_dict(dataclasses.asdict(self) | changes)

    @property
    def is_supervised(self) -> bool:
        return self.strategy == SUPERVISED

    def number_of_steps(self, patches: int, initial: int) -> int:
        """Acquisition steps for a pool of `patches`, of which `initial` are labelled at step 0."""
        if self.steps is not None:
            return self.steps
        return max(0, round((self.budget * patches - initial) / self.query_size))

    def given(self) -> dict[str, Any]:
        """Keys and values, without those that are None, which TOML has not."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.given())


def require_same(before: Config, now: Config, path: Path) -> None:
    """What was started in `path` goes on with its own settings, save PLACES.

    Raises ConfigError naming what differs.
    """
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    keys = [key for key in new if old[key] != new[key] and key not in PLACES]
    if differing := [f"{key}: {old[key]!r} → {new[key]!r}" for key in keys]:
        raise ConfigError(
            f"{path} was started with other settings ({'; '.join(differing)}): "
            "leave them out to continue it, or choose another --out"
        )


def require_device(name: str) -> None:
    """Raises ConfigError unless `name` could be a device's."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device is {name!r}; known: auto, cpu, cuda, cuda:0, cuda:1, …")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        arguments = typing.get_args(kind)
        return (
            isinstance(value, tuple)
            and len(value) == len(arguments)
            and all(_fits(v, a) for v, a in zip(value, arguments, strict=True))
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def from_dict(values: dict[str, Any]) -> Config:
    """Check names and types, then build. Missing keys take their defaults.

    Raises:
        ConfigError: an unknown key (with the known ones), a value of another type, or an impossible one.
    """
    hints = typing.get_type_hints(Config)
    if unknown := sorted(set(values) - set(hints)):
        raise ConfigError(f"unknown key {', '.join(unknown)}; known: {', '.join(hints)}")
    checked: dict[str, Any] = {}
    given: Any
    for key, value in values.items():
        given = tuple(value) if isinstance(value, list) else value
        if hints[key] is float and isinstance(given, str):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
                given = float(given)
        kinds = typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
        if not any(_fits(given, kind) for kind in kinds):
            raise ConfigError(f"{key} is {value!r}; expected {_spell(hints[key])}")
        checked[key] = float(given) if hints[key] is float else given
    return Config(**checked)


def _spell(kind: Any) -> str:
    if isinstance(kind, type):
        return kind.__name__
    return f"{kind}, such as [96, 192]" if "tuple" in str(kind) else str(kind)


def read(path: Path) -> Config:
    """Read a .toml, .yaml or .yml file. Raises ConfigError naming the file."""
    values = _values(path)
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def keys(path: Path) -> tuple[str, ...]:
    """The keys that a file gives. Raises ConfigError as `read` does."""
    return tuple(_values(path))


class _Once(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _values(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        toml = path.suffix.lower() == ".toml"
        values = tomllib.loads(text) if toml else _Once(text).get_single_data()
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid {path.suffix.lstrip('.').upper()}: {told}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def supervised(config: Config, kept: Iterable[str] = ()) -> Config:
    """The baseline of Table 1: every full image labelled, batch 2, 60 epochs, 8e-4, ×0.1 every 20 epochs.

    Keys among `kept` are as in `config`.
    """
    own: dict[str, Any] = {
        "steps": 0, "epochs": 60, "final_epochs": 0, "batch_size": 2, "learning_rate": 8e-4,
        "decay_every": 20,
    }  # fmt: skip
    changes = {key: value for key, value in own.items() if key not in set(kept)}
    return dataclasses.replace(config, **changes, strategy=SUPERVISED)


_PAPER: dict[str, Any] = {"architecture": "paper"}
_CAMVID: dict[str, Any] = _PAPER | {"dataset": "camvid", "budget": 0.05}
_CITYSCAPES: dict[str, Any] = _PAPER | {"dataset": "cityscapes", "budget": 0.01}
_LARGE_START: dict[str, Any] = {"initial_images": 20, "query_size": 25}
PRESETS: dict[str, Config] = {
    name: from_dict(values)
    for name, values in {
        "camvid": _CAMVID,
        "camvid-finetune": _CAMVID | {"finetune": True},
        "cityscapes": _CITYSCAPES,
        "cityscapes-finetune": _CITYSCAPES | {"finetune": True},
        "cityscapes-320": _CITYSCAPES | _LARGE_START,
        "cityscapes-320-finetune": _CITYSCAPES | _LARGE_START | {"finetune": True},
        "synthetic": {"encoder_weights": "none", "finetune": True, "query_size": 32,
                      "candidates": 128, "steps": 3, "epochs": 8, "final_epochs": 0, "batch_size": 4,
                      "validate_every": 4},
        "folder": {"dataset": "folder"},
    }.items()
}  # fmt: skip
