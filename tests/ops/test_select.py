"""The seam: which implementation is taken, and what is said when it cannot be."""

import importlib.machinery
import importlib.util
import inspect

import pytest
import torch

from meal_gpu import memory, ops
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.ops import Ops, cuda, reference, select, why_not_cuda


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, cupy: bool) -> None:
    """A machine with or without a GPU and CuPy."""
    find = importlib.util.find_spec

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        if name != "cupy":
            return find(name)
        return importlib.machinery.ModuleSpec(name, None) if cupy else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


@pytest.mark.parametrize(
    ("gpu", "cupy", "told"),
    [
        (False, True, "torch sees no NVIDIA GPU (check nvidia-smi"),
        (True, False, "CuPy is not installed: pip install 'meal-gpu[cuda13]'"),
    ],
)
def test_cuda_that_cannot_work_says_why_and_what_to_do(
    gpu: bool, cupy: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpu=gpu, cupy=cupy)
    why = why_not_cuda()
    assert why is not None
    assert told in why
    with pytest.raises(UnavailableError) as error:
        select("cuda")
    assert told in str(error.value)
    assert "--ops reference" in str(error.value)
    assert select("auto") is reference


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_cuda_is_taken_where_it_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[None] = []
    pretend(monkeypatch, gpu=True, cupy=True)
    monkeypatch.setattr(memory, "share_allocator", lambda: shared.append(None))
    assert why_not_cuda() is None
    assert select("reference") is reference
    assert shared == []
    assert select(name) is cuda
    assert len(shared) == 1


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputError, match="unknown ops 'gpu'; known: auto, reference, cuda"):
        select("gpu")


def test_the_default_is_auto() -> None:
    assert select() is select("auto")


def test_the_reference_has_every_function_of_the_protocol_with_its_arguments() -> None:
    # mypy checks the types; this also holds the names of the arguments where mypy does not run
    wanted = {n: f for n, f in vars(Ops).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert {"patch_entropy", "gather_patches", "kmeans_plusplus", "confusion", "umap_fit"} <= set(wanted)
    for name, function in wanted.items():
        expected = list(inspect.signature(function).parameters.values())[1:]
        actual = list(inspect.signature(getattr(reference, name)).parameters.values())
        assert [(p.name, p.kind) for p in actual] == [(p.name, p.kind) for p in expected], name
    assert reference.name == "reference"
    assert reference.name in ops.NAMES
