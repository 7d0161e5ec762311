"""A user's own network: built by a function that is named, with weights from a file of which nothing runs."""

import difflib
import hashlib
import inspect
import pickle
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meal_gpu.errors import ConfigError, InputError, MealGpuError, UnavailableError
from meal_gpu.models import NETWORK, Network, is_network

Tensors = dict[str, torch.Tensor]

_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
_UNREAD = "num_batches_tracked"  # of a BatchNorm: it says nothing about the output
_CONVERT = (
    "convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def build(spec: str, arguments: Mapping[str, Any], weights: Path | None = None) -> nn.Module | Network:
    """What `spec`, "package.module:factory", returns for `arguments`, filled with `weights`.

    The module may lie in the current directory; the factory may be dotted ("module:Class.method").

    Raises:
        ConfigError: no such form or factory, arguments that do not fit, a result that is no network, or one
            that takes no weights; and as `load_weights`.
        UnavailableError: the module is not there, or something fails when it is imported or the factory runs.
    """
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise ConfigError(f"model is {spec!r}; expected 'package.module:factory', as in 'networks:build'")
    factory: Any = _imported(name, spec)
    for part in attribute.split("."):
        if not hasattr(factory, part):
            known = [known for known in dir(factory) if not known.startswith("_")]
            close = difflib.get_close_matches(part, known) or known[:10]
            raise ConfigError(
                f"model {spec!r}: {_called(factory)} has no {part!r}; it has {', '.join(close) or 'nothing'}"
            )
        factory = getattr(factory, part)
    if not callable(factory):
        raise ConfigError(f"model {spec!r} is a {type(factory).__name__}; name a function or a class")
    model: nn.Module | Network = _called_with(factory, arguments, spec)
    if not (isinstance(model, nn.Module) or is_network(model)):
        raise ConfigError(
            f"model {spec!r} returns {type(model).__name__}; expected a torch.nn.Module or a "
            f"meal_gpu.models.Network (with {', '.join(NETWORK)})"
        )
    if weights is not None:
        if not isinstance(model, nn.Module):
            raise ConfigError(f"weights load into a torch.nn.Module, but {spec} gives none; load them there")
        load_weights(model, weights)
    return model


def _imported(name: str, spec: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UnavailableError(
                f"model {spec!r}: no module {error.name!r}; it must be installed or lie in {here}"
            ) from error
        raise UnavailableError(
            f"model {spec!r}: importing {name} fails, because it needs {error.name!r}: {error}"
        ) from error
    except (Exception, SystemExit) as error:  # the module is the user's: whatever it raises is told
        mend = ", as argparse does at module level: put it under `if __name__ == '__main__'`"
        raise UnavailableError(f"model {spec!r}: importing {name} {_ended(error, mend)}") from error


def _called_with(factory: Any, arguments: Mapping[str, Any], spec: str) -> Any:
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    signature = None
    with suppress(TypeError, ValueError):  # some callables have none
        signature = inspect.signature(factory)
    try:
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"model {spec!r} cannot be called with ({given}): {error}") from error
    try:
        return factory(**arguments)
    except (MealGpuError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # the factory is the user's: whatever it raises is told
        if signature is None and isinstance(error, TypeError):
            raise ConfigError(f"model {spec!r} cannot be called with ({given}): {error}") from error
        how = _ended(error, ": let it raise an error")
        raise UnavailableError(f"model {spec!r}: calling it with ({given}) {how}") from error


def _ended(error: BaseException, mend: str) -> str:
    what = f"{type(error).__name__}: {error}"
    return f"ends the process ({what}){mend}" if isinstance(error, SystemExit) else f"fails: {what}"


def _called(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", getattr(thing, "__name__", type(thing).__name__)))


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill all parameters and buffers of `model` from a .safetensors file or a torch checkpoint of tensors.

    The state dict may lie under "state_dict", "model_state_dict", "model" or "module", and its names may
    begin with what wrappers put there ("module.", "model.", "_orig_mod.", "net.", "network.").

    Raises:
        ConfigError: no checkpoint, one that holds more than tensors, names or shapes that do not fit, or
            NaN or infinite weights.
        UnavailableError: there is no such file.
    """
    if not path.is_file():
        raise UnavailableError(f"{path}: no such weight file")
    expected: Tensors = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    found = _stripped(_read(path), expected)
    _require_fit(found, expected, path)
    for name, tensor in found.items():
        if tensor.is_floating_point():
            wide = tensor.float() if tensor.itemsize == 1 else tensor
            if not bool(wide.isfinite().all()):
                raise ConfigError(f"{path}: {name!r} has NaN or infinite values; the training has diverged")
    model.load_state_dict(found, strict=False)


def _read(path: Path) -> Tensors:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: not a readable .safetensors file: {error}") from error
    if suffix not in _PICKLES:
        raise ConfigError(f"{path}: weights are .safetensors, or {', '.join(_PICKLES)} of torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises whatever its instructions run into
        raise _unreadable(path, error) from error
    return _unwrapped(content, path)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    with path.open("rb") as file:
        pickled = file.read(1) in (b"\x80", b"P")  # a pickle, or a zip archive of one
    if pickled and (isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error)):
        what = re.search(r"GLOBAL:? ([\w.]+)", str(error))
        return ConfigError(
            f"{path}: holds more than tensors{f' ({what[1]})' if what else ''}, which could run code when "
            f"read; {_CONVERT}"
        )
    first = (str(error) or type(error).__name__).splitlines()[0][:200]
    return ConfigError(f"{path}: truncated, or no checkpoint of torch.save ({first})")


def _unwrapped(content: Any, path: Path) -> Tensors:
    while isinstance(content, Mapping):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    holds = (
        ", ".join(map(str, list(content)[:10])) if isinstance(content, Mapping) else type(content).__name__
    )
    raise ConfigError(
        f"{path}: no state dict of tensors, at the top or under {', '.join(_WRAPPERS)}; "
        f"it holds {holds or 'nothing'}"
    )


def _stripped(found: Tensors, expected: Tensors) -> Tensors:
    """With the prefixes off that all names share, or on, as that brings them nearest to the expected ones."""
    best, most = found, len(found.keys() & expected.keys())
    while found and most < len(expected):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        if (fitting := len(found.keys() & expected.keys())) > most:
            best, most = found, fitting
    for prefix in _PREFIXES:  # of an adapter that a factory returns
        added = {f"{prefix}{name}": tensor for name, tensor in best.items()}
        if len(added.keys() & expected.keys()) > most:
            return added
    return best


def _require_fit(found: Tensors, expected: Tensors, path: Path) -> None:
    # A tied weight may be stored once
    stored = {(tensor.data_ptr(), tensor.shape) for name, tensor in expected.items() if name in found}
    missing = [
        name
        for name, tensor in expected.items()
        if name not in found
        and not name.endswith(_UNREAD)
        and not (tensor.data_ptr() and (tensor.data_ptr(), tensor.shape) in stored)
    ]
    unexpected = [name for name in found if name not in expected]
    other = [name for name in found if name in expected and found[name].shape != expected[name].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]!r}")
    if unexpected:
        faults.append(f"{len(unexpected)} of {len(found)} are unexpected, first {unexpected[0]!r}")
    if other:
        first = other[0]
        faults.append(
            f"{len(other)} of {len(expected)} are of another shape, first {first!r}: "
            f"{list(found[first].shape)} in the file, {list(expected[first].shape)} in the model"
        )
    if faults:
        raise ConfigError(f"{path}: the weights are of another network: {'; '.join(faults)}")
    for name, tensor in found.items():
        if _kind(tensor) != _kind(expected[name]) and not name.endswith(_UNREAD):
            there, here = (str(each.dtype).removeprefix("torch.") for each in (tensor, expected[name]))
            raise ConfigError(
                f"{path}: {name!r} is {there}, {here} in the model: dequantise, or convert, before saving"
            )


def _kind(tensor: torch.Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.is_quantized


def fingerprint(model: nn.Module | Network, *extra: object) -> str:
    """SHA-256, in hex, of the classes of a module and its parts, all parameters and buffers, and `extra`.

    What a module computes beyond that (a dilation, a threshold) is not seen: say it in `extra`, whose `repr`
    counts. Raises InputError for a network that is no module, whose weights are nowhere to be found.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__qualname__} is no torch.nn.Module, so its weights cannot be found")
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        digest.update(f"{name}={type(module).__module__}.{type(module).__qualname__}\n".encode())
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            digest.update(f"{kind} {name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(repr(extra).encode())
    return digest.hexdigest()
