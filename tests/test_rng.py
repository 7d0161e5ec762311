"""Streams depend on (seed, step, purpose) and on nothing else."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu import rng
from meal_gpu.models import Builder

triples = st.tuples(st.integers(0, 2**63), st.integers(0, 10_000), st.text(max_size=20))


@pytest.mark.parametrize(
    ("seed", "step", "purpose", "expected"),
    [(0, 0, "", 291248084), (0, 1, "kmeans_plusplus", 2021462289), (7, 3, "epoch 12", 1244935964)],
)
def test_streams_never_change_between_versions(seed: int, step: int, purpose: str, expected: int) -> None:
    # A run folder of today must be resumable by a later version
    assert rng.integer(seed, step, purpose) == expected


@given(triples)
def test_one_triple_is_one_stream(triple: tuple[int, int, str]) -> None:
    assert (rng.stream(*triple).random(8) == rng.stream(*triple).random(8)).all()
    assert rng.integer(*triple) == rng.integer(*triple)


@given(triples, triples)
def test_other_triples_are_other_streams(one: tuple[int, int, str], other: tuple[int, int, str]) -> None:
    same = (rng.stream(*one).random(8) == rng.stream(*other).random(8)).all()
    assert bool(same) == (one == other)


@pytest.mark.parametrize("other", [(1, 0, "a"), (0, 1, "a"), (0, 0, "b")])
def test_each_part_of_the_triple_counts(other: tuple[int, int, str]) -> None:
    a, b = rng.stream(0, 0, "a").random(10_000), rng.stream(*other).random(10_000)
    assert not np.isin(a, b).any()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.04  # four standard errors


@given(st.integers(0, 200), st.integers(0, 200))
def test_uniforms_are_prefix_nested(k: int, n: int) -> None:
    k, n = sorted((k, n))
    assert torch.equal(rng.uniforms(5, 2, "draws", k), rng.uniforms(5, 2, "draws", n)[:k])


def test_uniforms_are_float64_in_the_unit_interval() -> None:
    draws = rng.uniforms(0, 0, "draws", 20_000)
    assert (draws.dtype, draws.device.type) == (torch.float64, "cpu")
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 0.009  # four standard errors


def test_integers_fit_into_31_bits() -> None:
    values = [rng.integer(seed, 0, "seed") for seed in range(200)]
    assert len(set(values)) == len(values)
    assert min(values) >= 0
    assert max(values) < 2**31


def test_global_state_is_neither_read_nor_changed() -> None:
    def draw() -> list[float]:
        rng.integer(1, 1, "x")
        return [*rng.stream(1, 1, "x").random(3), *rng.uniforms(1, 1, "x", 3).tolist()]

    before = draw()
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())
    draw()
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    random.seed(9)
    np.random.seed(9)
    with torch.random.fork_rng():
        torch.manual_seed(9)
        assert draw() == before


def test_torch_is_seeded_for_a_while_and_no_other_device_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of several GPUs would have a context made on each, and torch would warn."""
    for name in ("device_count", "get_rng_state", "manual_seed_all", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("a GPU was asked"))
    before = torch.get_rng_state()
    with rng.seeded(5):
        drawn = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    Builder("smp", 3, "none")(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_device_is_seeded_for_a_while() -> None:
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state(device)
    with rng.seeded(5, device):
        drawn = torch.rand(3, device=device)
    assert torch.equal(torch.cuda.get_rng_state(device), before)
    generator = torch.Generator(device).manual_seed(5)
    assert torch.equal(drawn, torch.rand(3, device=device, generator=generator))
