"""What a sweep was asked for: strategies × seeds over one configuration. Read and written as sweep.toml."""

import dataclasses
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from meal_gpu import atomic, strategies
from meal_gpu import config as configs
from meal_gpu.config import SUPERVISED, Config
from meal_gpu.errors import ConfigError, RunError

FILE = "sweep.toml"
_MOST_SEEDS = 10_000  # more is a slip of the keyboard


def parse_strategies(text: str) -> tuple[str, ...]:
    """ "random,meal" -> their names. Raises ConfigError: an unknown one, one given twice, or none."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not name:
            raise ConfigError(f"strategies {text!r}: a name is missing; expected such as random,entropy,meal")
        if names.count(name) > 1:
            raise ConfigError(f"strategies {text!r}: {name} is given twice")
        if name != SUPERVISED:
            strategies.get(name)
    return names


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0..4" (with both ends), "0,2,5", "3" or a mix of them -> the seeds, in this order.

    Raises:
        ConfigError: something else, a range that counts down, or a seed given twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,18})(?:\.\.([0-9]{1,18}))?\s*", part)
        if not found:
            raise ConfigError(f"seeds {text!r}: expected such as 0..4, 0,2,5 or 3, each at least 0")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ConfigError(f"seeds {text!r}: {part.strip()} counts down; write {last}..{first}")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise ConfigError(f"seeds {text!r}: more than {_MOST_SEEDS} seeds in one sweep")
        seeds += range(first, last + 1)
    if len(set(seeds)) != len(seeds):
        twice = next(seed for i, seed in enumerate(seeds) if seed in seeds[:i])
        raise ConfigError(f"seeds {text!r}: {twice} is given twice")
    return tuple(seeds)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A run for every strategy and seed, each as `meal-gpu run` would start it with the same options.

    Attributes:
        base: the configuration of every run, save its strategy and seed.
        strategies, seeds: without repetition; at least one of each.
        given: keys of `base` that hold for the supervised baseline too; its other ones are its own
            (`config.supervised`).
    """

    base: Config
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    given: tuple[str, ...] = ()

    def config(self, strategy: str, seed: int) -> Config:
        """The configuration of one run."""
        if strategy == SUPERVISED:
            return dataclasses.replace(configs.supervised(self.base, self.given), seed=seed)
        found = dataclasses.replace(self.base, strategy=strategy, seed=seed)
        return found if strategies.get(strategy).measured else dataclasses.replace(found, measure="entropy")

    def runs(self) -> dict[str, Config]:
        """Name of the run folder -> configuration: all strategies of the first seed, then of the next."""
        return {f"{name}-{seed}": self.config(name, seed) for seed in self.seeds for name in self.strategies}

    def extended(self, asked: "Sweep", path: Path) -> "Sweep":
        """This sweep, which is in the folder `path`, with the strategies and seeds that `asked` adds, and
        its `config.PLACES`.

        Raises:
            ConfigError: `asked` leaves some out, or has other settings; both values are named.
        """
        for key in ("strategies", "seeds"):
            before, now = getattr(self, key), getattr(asked, key)
            if not set(before) <= set(now):
                raise ConfigError(
                    f"{path} was started with {key} {_list(before)}, now it is asked for {_list(now)}: "
                    "give all of the former and add to them, leave the option out, or choose another --out"
                )
        strategies = tuple(dict.fromkeys(self.strategies + asked.strategies))
        for strategy in strategies:
            configs.require_same(self.config(strategy, 0), asked.config(strategy, 0), path)
        seeds = tuple(dict.fromkeys(self.seeds + asked.seeds))
        places = {key: getattr(asked.base, key) for key in configs.PLACES}
        return dataclasses.replace(self, base=self.base.replace(**places), strategies=strategies, seeds=seeds)

    def write(self, folder: Path) -> None:
        """Write FILE, whole or not at all."""
        base = self.base.given()
        del base["strategy"], base["seed"]
        lists = {"strategies": self.strategies, "seeds": self.seeds, "given": self.given}
        text = tomli_w.dumps({key: list(values) for key, values in lists.items()} | {"base": base})
        atomic.write(folder / FILE, text)


def read(folder: Path) -> Sweep:
    """The sweep that was started in `folder`. Raises RunError where there is none, or it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        raise RunError(f"{folder} holds no sweep (no {FILE}); start one without --resume")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        return Sweep(
            base=configs.from_dict(values["base"]),
            strategies=tuple(values["strategies"]),
            seeds=tuple(values["seeds"]),
            given=tuple(values["given"]),
        )
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ConfigError) as error:
        raise RunError(f"{file}: this sweep cannot be continued: {error}") from error


def is_asked(strategy: str, seeds: str | None, resume: bool, out: Path | None) -> bool:
    """Whether the options of `meal-gpu run` mean a sweep, not one run."""
    continued = resume and out is not None and (out / FILE).is_file()
    return seeds is not None or "," in strategy or continued


def build(
    base: Config,
    settings: dict[str, Any],
    *,
    strategy: str | None,
    seeds: str | None,
    stored: Sweep | None = None,
    said: Sequence[str] = (),
) -> Sweep:
    """The sweep that options ask for: `settings` are changes of `base`, `said` the keys of `base` that a file
    gave, which hold for the supervised baseline too.

    What `strategy` and `seeds` leave open is taken from the `stored` sweep that is continued, else from
    `base`; so are the settings of the supervised baseline where `base` is the stored one.
    """
    if stored is not None:
        names, numbers = stored.strategies, stored.seeds
    else:
        names, numbers = (base.strategy,), (base.seed,)
    said = [key for key in said if key not in ("strategy", "seed")]
    kept: Sequence[str] = stored.given if stored is not None and base == stored.base else ()
    return Sweep(
        base=base.replace(**settings),
        strategies=parse_strategies(strategy) if strategy is not None else names,
        seeds=parse_seeds(seeds) if seeds is not None else numbers,
        given=tuple(dict.fromkeys((*kept, *said, *settings))),
    )


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
