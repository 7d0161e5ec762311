"""One frozen record: the rows of Table 1, checked values, files in and out."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.config import PRESETS, Config, from_dict, keys, read, supervised
from meal_gpu.errors import ConfigError

# DESIGN.md section 2: preset -> dataset, finetune, initial patches (16 an image), N, budget
TABLE_1 = {
    "camvid": ("camvid", False, 32, 32, 0.05),
    "camvid-finetune": ("camvid", True, 32, 32, 0.05),
    "cityscapes": ("cityscapes", False, 32, 32, 0.01),
    "cityscapes-finetune": ("cityscapes", True, 32, 32, 0.01),
    "cityscapes-320": ("cityscapes", False, 320, 25, 0.01),
    "cityscapes-320-finetune": ("cityscapes", True, 320, 25, 0.01),
}


@pytest.mark.parametrize(("preset", "row"), TABLE_1.items())
def test_presets_are_the_rows_of_table_1(preset: str, row: tuple[str, bool, int, int, float]) -> None:
    c = PRESETS[preset]
    assert (c.dataset, c.finetune, 16 * c.initial_images, c.query_size, c.budget) == row
    assert (c.architecture, c.encoder_weights, c.grid, c.candidates) == ("paper", "imagenet", (4, 4), 200)
    assert (c.epochs, c.final_epochs, c.batch_size, c.learning_rate) == (25, 32, 8, 1e-3)
    assert (c.decay_every, c.keep, c.manifold_dimension, c.steps) == (0, "best", 2, None)
    assert c.context == "image"  # measured: patches alone lie far below the paper


def test_every_preset_is_a_row_or_a_dataset_of_its_own() -> None:
    assert set(PRESETS) == {*TABLE_1, "synthetic", "folder"}


@pytest.mark.parametrize(
    ("preset", "patches", "initial", "steps", "labelled"),
    [
        ("camvid", 5872, 32, 8, 288),  # 5 % are 293.6
        ("cityscapes", 47600, 32, 14, 480),  # 1 % are 476
        ("cityscapes-320", 47600, 320, 6, 470),
    ],
)
def test_steps_are_rounded_to_the_budget(
    preset: str, patches: int, initial: int, steps: int, labelled: int
) -> None:
    config = PRESETS[preset]
    assert config.number_of_steps(patches, initial) == steps
    assert initial + steps * config.query_size == labelled


def test_steps_override_the_budget_and_are_never_negative() -> None:
    assert Config(steps=3, budget=0.5).number_of_steps(1000, 32) == 3
    assert Config(steps=0).number_of_steps(10**6, 32) == 0
    assert Config(budget=0.01).number_of_steps(1000, 32) == 0


@given(st.integers(1, 10**7), st.integers(0, 10**4), st.floats(1e-4, 1), st.integers(1, 200))
def test_the_number_of_steps_is_the_nearest(patches: int, initial: int, budget: float, n: int) -> None:
    steps = Config(budget=budget, query_size=n).number_of_steps(patches, initial)
    assert steps >= 0
    if budget * patches >= initial:
        assert abs(initial + steps * n - budget * patches) <= n / 2 + 1e-6


def test_supervised_is_the_papers_schedule() -> None:
    base = PRESETS["camvid-finetune"].replace(seed=4, size=(180, 240))
    s = supervised(base)
    assert (s.strategy, s.steps, s.epochs, s.final_epochs) == ("supervised", 0, 60, 0)
    assert (s.batch_size, s.learning_rate, s.decay_every) == (2, 8e-4, 20)
    assert (s.dataset, s.seed, s.size, s.finetune) == ("camvid", 4, (180, 240), True)


def test_supervised_leaves_what_is_kept() -> None:
    base = Config(epochs=3, batch_size=4, steps=2, finetune=True)
    s = supervised(base, ("epochs", "batch_size", "finetune", "seed"))
    assert (s.epochs, s.batch_size, s.finetune) == (3, 4, True)
    assert (s.strategy, s.steps, s.decay_every, s.learning_rate) == ("supervised", 0, 20, 8e-4)


VARIANTS = {
    **PRESETS,
    "defaults": Config(),
    "supervised": supervised(Config()),
    "all optional keys": Config(root="/data/ü", size=(90, 120), steps=2, final_epochs=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_toml_round_trip(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(VARIANTS[name].to_toml(), encoding="utf-8")
    assert read(path) == VARIANTS[name]


def test_every_key_that_toml_cannot_spell_defaults_to_it() -> None:
    # TOML has no null: a key that can be None comes back as None only where that is its default
    optional = [f for f in dataclasses.fields(Config) if type(None) in getattr(f.type, "__args__", ())]
    assert {f.name for f in optional} == {"root", "size", "steps"}
    assert all(f.default is None for f in optional)


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_yaml(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"config{suffix}"
    path.write_text("dataset: camvid\nsize: [180, 240]\nlearning_rate: 1\nroot: null\n")
    assert read(path) == Config(dataset="camvid", size=(180, 240), learning_rate=1.0)
    assert keys(path) == ("dataset", "size", "learning_rate", "root")
    assert isinstance(read(path).learning_rate, float)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "seed = ", "not valid TOML"),
        ("a.yaml", "seed: [", "not valid YAML: while parsing a flow node expected"),
        ("a.yaml", "- 1\n", "expected keys and values, found list"),
        ("a.yaml", "", "found NoneType"),
        ("a.yaml", "seed: 1\ngrid: [2, 2]\n'seed': 2\n", "not valid YAML: the key 'seed' is there twice in"),
        ("a.yaml", "size: 96x192", "size is '96x192'; expected tuple[int, int] | None, such as [96, 192]"),
        ("a.toml", "sed = 1", "unknown key sed"),
        ("a.toml", b"\xff\xfe", "cannot be read"),
        ("a.toml", None, "cannot be read"),
    ],
)
def test_bad_files_are_named(name: str, text: str | bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["c.toml", "c.TOML", "c.yaml", "c.YML"])
def test_a_mark_of_the_byte_order_and_large_letters_change_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("seed = 3" if "toml" in name.lower() else "seed: 3", encoding="utf-8-sig")
    assert read(path) == Config(seed=3)


def test_yaml_may_merge_what_it_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("<<: {seed: 3, steps: 2}\nseed: 4\n")
    assert read(path) == Config(seed=4, steps=2)


def test_unknown_keys_are_listed_with_the_known() -> None:
    with pytest.raises(ConfigError) as error:
        from_dict({"sede": 1, "batchsize": 2})
    assert "unknown key batchsize, sede" in str(error.value)
    assert all(field.name in str(error.value) for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", "3", "int"),
        ("seed", 3.0, "int"),
        ("seed", True, "int"),
        ("seed", None, "int"),
        ("finetune", 1, "bool"),
        ("finetune", "false", "bool"),
        ("budget", "5 %", "float"),
        ("budget", True, "float"),
        ("size", [1, 2, 3], "tuple[int, int] | None, such as [96, 192]"),
        ("size", [90.0, 120.0], "tuple[int, int] | None, such as [96, 192]"),
        ("grid", 4, "tuple[int, int], such as [96, 192]"),
        ("dataset", None, "str"),
    ],
)
def test_wrong_types(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict({key: value})
    assert str(error.value) == f"{key} is {value!r}; expected {expected}"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, ("seed is -1", "at least 0")),
        ({"initial_images": 0}, ("initial_images is 0", "at least 1")),
        ({"query_size": 0}, ("query_size is 0", "at least 1")),
        ({"epochs": 0}, ("epochs is 0", "at least 1")),
        ({"strategy": "bald", "passes": 1}, ("passes is 1", "at least 2")),
        ({"measure": "bald", "passes": 1}, ("passes is 1", "at least 2")),
        ({"final_epochs": -1}, ("final_epochs is -1", "at least 0")),
        ({"batch_size": 1}, ("batch_size is 1", "at least 2")),
        ({"validate_every": 0}, ("validate_every is 0", "at least 1")),
        ({"decay_every": -1}, ("decay_every is -1", "at least 0")),
        ({"steps": -1}, ("steps is -1", "at least 0")),
        ({"manifold_dimension": 0}, ("manifold_dimension is 0", "at least 1")),
        ({"manifold_neighbors": 1}, ("manifold_neighbors is 1", "at least 2")),
        ({"manifold_limit": 3}, ("manifold_limit is 3", "at least 4")),
        ({"manifold_limit": 6, "manifold_dimension": 5}, ("manifold_limit is 6", "at least 7")),
        ({"manifold_min_dist": -0.1}, ("manifold_min_dist is -0.1", "between 0 and 1")),
        ({"manifold_min_dist": 1.5}, ("manifold_min_dist is 1.5", "between 0 and 1")),
        ({"size": (0, 8)}, ("size is (0, 8)", "at least 1")),
        ({"grid": (4, 0)}, ("grid is (4, 0)", "at least 1")),
        ({"budget": 0.0}, ("budget is 0.0", "at most 1")),
        ({"budget": 1.5}, ("budget is 1.5", "at most 1")),
        ({"budget": float("nan")}, ("budget is nan", "finite")),
        ({"control_share": float("nan")}, ("control_share is nan", "finite")),
        ({"learning_rate": float("inf")}, ("learning_rate is inf", "finite")),
        ({"cache_gib": float("inf")}, ("cache_gib is inf", "finite")),
        ({"pool_share": float("-inf")}, ("pool_share is -inf", "finite")),
        ({"manifold_min_dist": float("nan")}, ("manifold_min_dist is nan", "finite")),
        ({"candidates": 31}, ("candidates is 31", "query_size 32")),
        ({"learning_rate": 0.0}, ("learning_rate is 0.0", "above 0")),
        ({"learning_rate": float("nan")}, ("learning_rate is nan",)),
        ({"cache_gib": -1.0}, ("cache_gib is -1.0",)),
        ({"cache_gib": float("nan")}, ("cache_gib is nan",)),
        ({"architecture": "resnet"}, ("'resnet'", "smp, paper")),
        ({"keep": "worst"}, ("'worst'", "best, last")),
        ({"precision": "half"}, ("'half'", "auto, float32, bfloat16")),
        ({"ops": "gpu"}, ("'gpu'", "auto, reference, cpu, cuda")),
        ({"device": "gpu"}, ("'gpu'", "auto, cpu, cuda, cuda:0")),
        ({"device": "cuda:"}, ("'cuda:'", "known")),
        (
            {"device": "cpu", "ops": "cuda"},
            ("ops 'cuda'", "device 'cpu'", "--device cuda", "--ops reference"),
        ),
        (
            {"device": "cuda:1", "ops": "cpu"},
            ("ops 'cpu'", "device 'cuda:1'", "--device cpu", "--ops reference"),
        ),
        ({"control_share": 0.01}, ("control_share is 0.01", "0 of query_size 32", "between 0.031")),
        ({"control_share": 0.99}, ("control_share is 0.99", "32 of query_size 32", "and 0.97")),
    ],
)
def test_impossible_values_name_what_was_given_and_what_is_possible(
    changes: dict[str, Any], told: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**changes)
    assert all(part in str(error.value) for part in told)
    with pytest.raises(ConfigError):
        from_dict(changes)


def test_replace_checks_like_a_file_and_leaves_the_original() -> None:
    base = Config()
    assert base.replace(size=[90, 120], budget=1).size == (90, 120)
    assert base == Config()
    for changes in ({"nope": 1}, {"seed": "1"}, {"seed": -1}):
        with pytest.raises(ConfigError):
            base.replace(**changes)


def test_a_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]
