"""Networks named by text, and weight files of which nothing runs."""

import hashlib
import os
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from meal_gpu.adapters import adapt
from meal_gpu.checkpoint import build, fingerprint, load_weights
from meal_gpu.errors import ConfigError, InputError, UnavailableError

MODULE = """
from meal_gpu.errors import ConfigError
from torch import nn

class Net(nn.Module):
    @classmethod
    def of(cls, classes):
        net = cls()
        net.head = nn.Conv2d(3, classes, 1)
        return net

class Bare:
    align_corners, mean, std = False, (0, 0, 0), (1, 1, 1)
    def padded_size(self, size): return size
    def features(self, images): return images

def building(classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Conv2d(width, classes, 1))

def number():
    return 7

def picky():
    raise RuntimeError("the factory's own")

def leaving():
    raise SystemExit(3)

def interrupted():
    raise KeyboardInterrupt

def careless():
    return len(3)

def told():
    raise ConfigError("meal-gpu's own")

CONSTANT = 3
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with modules; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = {
        "my_networks": MODULE, "my_needy": "import not_there_at_all", "my_broken": "1 / 0",
        "my_script": "import argparse\nargparse.ArgumentParser().parse_args(['--epochs'])",
    }  # fmt: skip
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_network_is_built_from_its_name(home: Path) -> None:
    built = build("my_networks:building", {"classes": 5, "width": 2})
    assert isinstance(built, nn.Sequential)
    assert built[1].weight.shape == (5, 2, 1, 1)
    assert isinstance(build("my_networks:Net.of", {"classes": 5}), nn.Module)
    assert not isinstance(build("my_networks:Bare", {}), nn.Module)


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("my_networks", ConfigError, "expected 'package.module:factory'"),
        (":building", ConfigError, "expected 'package.module:factory'"),
        ("my_networks:", ConfigError, "expected 'package.module:factory'"),
        ("my_netwoks:building", UnavailableError, "no module 'my_netwoks'; it must be installed or lie in /"),
        ("my_networks.inner:f", UnavailableError, "my_networks"),
        ("my_needy:f", UnavailableError, "importing my_needy fails, because it needs 'not_there_at_all'"),
        ("my_broken:f", UnavailableError, "importing my_broken fails: ZeroDivisionError: division by zero"),
        ("my_networks:bulding", ConfigError, "my_networks has no 'bulding'; it has building"),
        ("my_networks:Net.off", ConfigError, "Net has no 'off'; it has .*of"),
        ("my_networks:CONSTANT", ConfigError, "is a int; name a function or a class"),
        ("my_networks:building", ConfigError, r"called with \(\): missing a required argument: 'classes'"),
        ("builtins:range", ConfigError, r"cannot be called with \(\): range expected at least 1"),
        ("my_networks:number", ConfigError, r"returns int; expected a torch\.nn\.Module"),
        (
            "my_networks:picky",
            UnavailableError,
            r"calling it with \(\) fails: RuntimeError: the factory's own",
        ),
        (
            "my_script:f",
            UnavailableError,
            r"importing my_script ends the process \(SystemExit: 2\), as argparse does .* == '__main__'`$",
        ),
        (
            "my_networks:leaving",
            UnavailableError,
            r"calling it with \(\) ends the process \(SystemExit: 3\): let it raise an error$",
        ),
        (
            "my_networks:careless",
            UnavailableError,
            r"calling it with \(\) fails: TypeError: object of type 'int'",
        ),
        ("my_networks:told", ConfigError, "^meal-gpu's own$"),
    ],
)
def test_a_name_that_does_not_fit(home: Path, spec: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build(spec, {})


def test_an_interrupt_is_nobodys_error(home: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build("my_networks:interrupted", {})


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(body=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4), head=nn.Conv2d(4, 5, 1))
    )


WRAPS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 3, "model_state_dict": state},
    "nested": lambda state: {"model": {"module": state, "step": 1}},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module.", "net.network."])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
def test_weights_are_found(tmp_path: Path, wrap: str, prefix: str, suffix: str) -> None:
    wanted, model = network(1), network(2)
    state = {f"{prefix}{name}": tensor for name, tensor in wanted.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(WRAPS[wrap](state), path)
    load_weights(model, path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in wanted.state_dict().items())


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    wanted, model = nn.ModuleDict({"model": network(1)}), nn.ModuleDict({"model": network(2)})
    torch.save({f"module.{k}": v for k, v in wanted.state_dict().items()}, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model["model"].head.weight, wanted["model"].head.weight)
    state = {f"module.{k}": v for k, v in wanted.state_dict().items() if k != "model.head.bias"}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"1 of 9 tensors are missing, first 'model\.head\.bias'$"):
        load_weights(model, tmp_path / "w.pt")


def test_weights_fit_the_network_inside_an_adapter(tmp_path: Path) -> None:
    inner, given = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)
    torch.save(given.state_dict(), tmp_path / "w.pt")
    load_weights(adapt(inner), tmp_path / "w.pt")  # type: ignore[arg-type]
    assert torch.equal(inner.weight, given.weight)


def test_tied_weights_may_be_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {k: v + 1 for k, v in model.state_dict().items() if k != "1.weight"}
    save_file(state, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[1].weight, state["0.weight"])


def test_weights_of_another_network(tmp_path: Path) -> None:
    state = network().state_dict()
    state["head.weight"] = torch.zeros(7, 4, 1, 1)
    state["more"] = state.pop("body.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as raised:
        load_weights(network(), tmp_path / "w.pt")
    assert str(raised.value) == (
        f"{tmp_path}/w.pt: the weights are of another network: 1 of 9 tensors are missing, "
        "first 'body.bias'; 1 of 9 are unexpected, first 'more'; 1 of 9 are of another shape, "
        "first 'head.weight': [7, 4, 1, 1] in the file, [5, 4, 1, 1] in the model"
    )


def quantised(weight: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("name", "convert", "kinds"),
    [
        ("body.weight", lambda x: (x * 10).to(torch.int8), "int8, float32"),
        ("norm.running_var", lambda x: x.int(), "int32, float32"),
        ("head.bias", lambda x: x.to(torch.complex64), "complex64, float32"),
        ("head.weight", quantised, "qint8, float32"),
        ("classes", lambda x: x.half(), "float16, int64"),
    ],
)
def test_weights_of_another_kind(
    tmp_path: Path, name: str, convert: Callable[[torch.Tensor], torch.Tensor], kinds: str
) -> None:
    model = network()
    model.register_buffer("classes", torch.arange(5))
    state = model.state_dict()
    torch.save(state | {name: convert(state[name])}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=rf"w\.pt: '{name}' is {kinds} in the model: dequantise, or conv"):
        load_weights(model, tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("count", [True, False])
def test_weights_of_another_precision(tmp_path: Path, dtype: torch.dtype, count: bool) -> None:
    wanted, model = network(1), network(2)
    state = {  # also as written by those who convert a BatchNorm's count with all else
        name: tensor.to(dtype) if tensor.is_floating_point() or count else tensor
        for name, tensor in wanted.state_dict().items()
    }
    torch.save(state, tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    model, before = network(), network().state_dict()
    state = {name: tensor.clone() for name, tensor in before.items()}
    state["norm.running_var"][2] = value
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"'norm\.running_var' has NaN or infinite"):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.fault("security", "a checkpoint that runs code when unpickled", "refused, named; nothing runs")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pickle 2"])
def test_nothing_of_a_file_runs(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pt"
    content = {"state_dict": network().state_dict(), "config": Malice(trace)}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=2 if "2" in form else 5))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ConfigError, match=r"holds more than tensors.*safetensors\.torch\.save_file"):
        load_weights(network(), path)
    assert not trace.exists()
    if form == "pickle 2":
        with path.open("rb") as file:
            pickle.load(file)
        assert trace.exists()  # it was no blank cartridge


@pytest.mark.fault(
    "security", "a checkpoint that holds a whole pickled module", "refused, with the call that converts it"
)
def test_a_whole_module_is_more_than_tensors(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"holds more than tensors \(torch\.nn\.modules"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"hello world, this is not", b"PK\x03\x04junk"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"w{suffix}: (truncated, or no|not a readable)"):
        load_weights(network(), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_checkpoint(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(dict(network().state_dict()), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=rf"w{suffix}: (truncated|not a readable)"):
        load_weights(network(), path)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such weight file"):
        load_weights(network(), tmp_path / "w.pt")
    (tmp_path / "w.npz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"weights are \.safetensors, or \.pt"):
        load_weights(network(), tmp_path / "w.npz")
    for content, holds in (
        ({"epoch": 3, "loss": 0.5}, "epoch, loss"),
        ([torch.ones(1)], "list"),
        ({}, "noth"),
    ):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(ConfigError, match=f"no state dict of tensors.*it holds {holds}"):
            load_weights(network(), tmp_path / "w.pt")


def test_fingerprints_tell_networks_apart() -> None:
    first = fingerprint(network(1), "a", 2)
    assert first == fingerprint(network(1), "a", 2)
    assert len(first) == len(hashlib.sha256().hexdigest())
    changed = network(1)
    changed.norm.running_mean[1] += 1e-7  # type: ignore[union-attr, operator, index]
    relu, sigmoid = network(1), network(1)
    relu.last = nn.ReLU()  # type: ignore[assignment]
    sigmoid.last = nn.Sigmoid()  # type: ignore[assignment]
    half = network(1).bfloat16()
    others = [network(2), changed, relu, sigmoid, half]
    prints = [first, fingerprint(network(1), "a", 3), fingerprint(network(1))]
    assert len({*prints, *(fingerprint(other, "a", 2) for other in others)}) == len(prints) + len(others)


def test_fingerprints_look_at_shapes_beside_the_bytes() -> None:
    wide, high = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
    for layer in (wide, high):
        nn.init.zeros_(layer.weight)
    assert fingerprint(wide) != fingerprint(high)


def test_fingerprints_look_at_values_not_at_memory() -> None:
    straight, strided = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    strided.load_state_dict(straight.state_dict())
    strided = strided.to(memory_format=torch.channels_last)
    assert fingerprint(straight) == fingerprint(strided)
    with pytest.raises(InputError, match=r"no torch\.nn\.Module"):
        fingerprint(object())  # type: ignore[arg-type]
