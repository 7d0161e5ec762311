"""The seam: which implementation is taken, and what is said when it cannot be."""

import importlib.machinery
import importlib.util
import inspect

import pytest
import torch

from meal_gpu import memory, ops
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.ops import Ops, cpu, cuda, reference, select, select_for, why_not_cuda


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
    monkeypatch.setattr(ops, "why_not_cpu", lambda: None)
    assert select("auto") is cpu


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
    with pytest.raises(InputError, match="unknown ops 'gpu'; known: auto, reference, cpu, cuda"):
        select("gpu")


def test_the_default_is_auto() -> None:
    assert select() is select("auto")


@pytest.mark.parametrize(
    ("device", "without", "taken"),
    [
        ("cpu", (), cpu),
        ("cpu", ("cuda",), cpu),
        ("cpu", ("cpu",), reference),
        ("cuda:1", (), cuda),
        ("cuda:1", ("cpu",), cuda),
        # the CPU's kernels cannot read what lies on a GPU, or on whatever else torch knows
        ("cuda:1", ("cuda",), reference),
        ("meta", (), reference),
    ],
)
@pytest.mark.filterwarnings("ignore:the slower reference ops")
def test_auto_takes_the_fastest_that_can_read_the_arrays(
    device: str, without: tuple[str, ...], taken: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu", "cuda"):
        monkeypatch.setattr(ops, f"why_not_{name}", lambda name=name: "broken" if name in without else None)
    monkeypatch.setattr(memory, "share_allocator", lambda: None)
    assert select_for(torch.device(device)) is taken
    assert select_for(torch.device(device), "reference") is reference
    for name in {"cpu", "cuda"} - set(without):
        # what was asked for by name is taken, and says itself what it cannot read
        assert select_for(torch.device(device), name).name == name
    for name in without:
        with pytest.raises(UnavailableError, match=f"ops '{name}' cannot work here: broken. Use --ops ref"):
            select_for(torch.device(device), name)


@pytest.mark.parametrize("implementation", [reference, cpu, cuda], ids=lambda module: module.name)
def test_a_module_has_every_function_of_the_protocol_with_its_arguments(implementation: Ops) -> None:
    # mypy checks the types; this also holds the names of the arguments where mypy does not run
    wanted = {n: f for n, f in vars(Ops).items() if inspect.isfunction(f) and not n.startswith("_")}
    on_logits = {"patch_entropy", "patch_classes", "patch_committee", "confusion"}
    assert on_logits | {"gather_patches", "kmeans_plusplus", "umap_fit"} <= set(wanted)
    for name, function in wanted.items():
        expected = list(inspect.signature(function).parameters.values())[1:]
        actual = list(inspect.signature(getattr(implementation, name)).parameters.values())
        assert [(p.name, p.kind) for p in actual] == [(p.name, p.kind) for p in expected], name
    # not another's: cuda's lie in cuda_logits
    for name in on_logits:
        assert getattr(implementation, name).__module__.startswith(f"meal_gpu.ops.{implementation.name}"), (
            name
        )
    assert implementation.name in ops.NAMES
