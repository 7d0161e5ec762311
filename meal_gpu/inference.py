"""A network made ready for inference: BatchNorm folded, weights in the pass's precision, a CUDA graph."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from meal_gpu.config import require_device
from meal_gpu.convolution import Phased, phase_dilated
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.memory import is_out_of_memory, same_device
from meal_gpu.models import Network, Output, altered

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# They run their children in order, and resize at the end. BatchNorm, or ReLU out of place, would lose the
# channels-last memory of the one pixel inside, and with it that of the concatenation behind
_POOLINGS = (
    "segmentation_models_pytorch.decoders.deeplabv3.decoder.ASPPPooling",
    "torchvision.models.segmentation.deeplabv3.ASPPPooling",
)
# Whose modules compute in autocast's precision, and read nothing between a convolution and its BatchNorm;
# code of another origin may do otherwise
_LIBRARIES = {"torch", "torchvision", "segmentation_models_pytorch", "timm", "meal_gpu"}
_OTHERS = (torch.float16, torch.bfloat16, torch.float64)
_READY: WeakKeyDictionary[nn.Module, tuple[str, torch.device]] = WeakKeyDictionary()  # what was made here
_WARM_UP = 3  # passes before a capture, in which libraries choose their algorithms


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The mixed precision of the forward passes: "float32" leaves them alone."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def device_named(name: str) -> torch.device:
    """ "auto" -> a GPU where torch sees one, else the CPU; "cpu", "cuda", "cuda:0", …

    Raises:
        ConfigError: another name.
        UnavailableError: a GPU that torch does not see.
    """
    require_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UnavailableError(f"device {name!r}: torch sees no GPU; use --device cpu")
    return torch.device(name)


def default_precision(device: torch.device) -> str:
    """bfloat16 where the hardware has it, float32 elsewhere."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)  # cuDNN has no such convolutions before
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def for_inference(model: Network, precision: str, device: torch.device) -> Network:
    """A copy of `model` in eval mode that computes the same, faster, under `autocast` with `precision`.

    BatchNorms that follow a convolution in a plain `nn.Sequential`, or in the pooling of DeepLab's ASPP, are
    folded into it in float32 (Jacob et al. 2018, section 3.2) where all modules around them are of known
    libraries: somebody's own may read what is between the two. In networks of known libraries alone the
    weights that autocast would cast in every pass are cast once. On the CPU, depthwise convolutions of a
    large dilation become `Phased`. A network that is no `nn.Module`, or cannot be copied, is put in eval mode
    and returned as it is. Weights in half or double precision become float32. What this function made for the
    same is returned as it is.

    Args:
        device: where the model is, and will be called.

    Raises:
        InputError: the model is elsewhere.
    """
    if not isinstance(model, nn.Module):
        model.eval()
        return model
    require_place(model, device)
    if _READY.get(model) == (precision, device):
        return cast("Network", model)
    try:
        ready: Any = copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:  # tensors computed from parameters, locks, open files
        if is_out_of_memory(error):
            raise
        model.eval()
        return model
    if any(parameter.dtype in _OTHERS for parameter in ready.parameters()):
        ready.float()  # autocast, where it is on, looks after the rest
    fold_batchnorm(ready)
    if device.type == "cpu":
        phase_dilated(ready)
    if precision != "float32" and all(_library(module) in _LIBRARIES for module in ready.modules()):
        for module in ready.modules():
            if type(module) in (nn.Conv2d, nn.Linear, Phased):
                module.to(PRECISIONS[precision])
    _READY[ready] = (precision, device)
    network: Network = ready
    return network


def name_of(model: object) -> str:
    """What a user calls the network: the class inside of an adapter or a window."""
    while type(model).__module__.startswith("meal_gpu."):
        inner = getattr(model, "network", getattr(model, "model", None))
        if inner is None:
            break
        model = inner
    return type(model).__name__


def require_values(model: nn.Module) -> None:
    """Raises InputError where a weight of `model` has no value."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name_of(model)} is on the meta device: {name} has a shape and no values; "
                "load its weights (model.to_empty(device=...), then load_state_dict)"
            )


def require_place(model: nn.Module, device: torch.device) -> None:
    """Raises InputError where a weight of `model` has no value, or is on another device."""
    require_values(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not same_device(tensor.device, device):
            raise InputError(
                f"{name_of(model)} has {name} on {tensor.device}, and the images are on {device}: "
                f"model.to({str(device)!r}), or leave out device="
            )


def checked(
    output: Any, pixels: torch.Tensor, padded: tuple[int, int], model: object, classes: int | None = None
) -> Output:
    """The output of `model` for `pixels` [B, 3, H, W] where its logits are what a `Network` promises.

    Args:
        padded: (H, W) that the logits span.
        classes: how many there must be; None: any number.

    Raises:
        InputError: no `Output`; logits of another rank, dtype, layout, batch, device or number of classes,
            empty ones, or with two strides.
    """
    name, logits = name_of(model), getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 4 or not logits.is_floating_point():
        seen = type(output).__name__
        if isinstance(logits, torch.Tensor):
            seen = f"logits {list(logits.shape)} {logits.dtype}"
        raise InputError(f"{name} returns {seen}; expected an Output of floating-point logits [B, C, h, w]")
    if logits.layout is not torch.strided:
        raise InputError(f"{name} returns logits of layout {logits.layout}; return logits.to_dense()")
    if len(logits) != len(pixels) or logits.device != pixels.device:
        raise InputError(
            f"{name} returns logits of {len(logits)} images on {logits.device} "
            f"for {len(pixels)} images on {pixels.device}"
        )
    if classes is not None and logits.shape[1] != classes:
        raise InputError(
            f"{name} returns logits of {logits.shape[1]} classes, but {classes} are named by the dataset or "
            "the list of classes; take the model that was trained on these classes, or name those that it has"
        )
    cells = logits.shape[2:]
    if 0 in cells:
        raise InputError(f"{name} returns logits {list(logits.shape)}, which are empty; give each image some")
    # A stride gives a side of the image some cells, or one more or less where it is no multiple
    least = max(side / (number + 1) for side, number in zip(padded, cells, strict=True))
    most = min(side / max(number - 1, 0.5) for side, number in zip(padded, cells, strict=True))
    if least > most:
        down, across = (side / number for side, number in zip(padded, cells, strict=True))
        raise InputError(
            f"{name} returns logits of {cells[0]}×{cells[1]} for {padded[0]}×{padded[1]} pixels, "
            f"{down:.3g} pixels down and {across:.3g} across for one: a model that crops or transposes must "
            "give logits of the whole image, and one that works on squares resize them to the image's shape"
        )
    found: Output = output
    return found


def fold_batchnorm(model: nn.Module) -> None:
    """Fold every BatchNorm2d that follows a Conv2d of its own in a plain `nn.Sequential`, in place.

    The pooling of DeepLab's ASPP counts as one. A ReLU behind then overwrites its input, which nothing else
    reads: what somebody's own module holds is left alone, because its code may call the parts one by one.
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for parent in _of_libraries(model):
        if not _is_plain(parent) and _home(parent) not in _POOLINGS:
            continue
        before: nn.Module | None = None
        folded = False
        for name, child in parent.named_children():
            convolution = _last(before)
            alone = uses[id(child)] == 1 and not altered(child)
            if folded and alone and isinstance(child, nn.ReLU | nn.ReLU6):
                child.inplace = True
            folded = False
            # Of a class of its own, parametrised ones among them, either may compute something else
            if (
                type(child) is nn.BatchNorm2d
                and type(convolution) is nn.Conv2d
                and child.running_mean is not None
                and uses[id(convolution)] == 1
                and not altered(child, convolution)
            ):
                _fold(convolution, child)
                setattr(parent, name, nn.Identity())
                folded = True
            before = child


def _of_libraries(module: nn.Module) -> Iterator[nn.Module]:
    """`module` and what is inside, as far as every module on the way is of a known library."""
    if _library(module) in _LIBRARIES and "forward" not in vars(module):
        yield module
        for child in module.children():
            yield from _of_libraries(child)


def _is_plain(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _library(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]


def _home(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _last(module: nn.Module | None) -> nn.Module | None:
    """The module that computes the output of `module`, as far as no hook looks on."""
    while isinstance(module, nn.Sequential) and _is_plain(module) and len(module) and not altered(module):
        module = module[-1]
    return module


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight,
        norm.bias,
    )  # fmt: skip


class Graphed:
    """The forward pass on batches of at most `len(batch)` images, replayed as one CUDA graph.

    The outputs are valid until the next call. A shorter batch is computed with old images behind it.
    """

    def __init__(self, model: Network, batch: torch.Tensor, precision: str) -> None:
        self._input = batch.clone()
        side = torch.cuda.Stream(batch.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(side), autocast(batch.device, precision):
            for _ in range(_WARM_UP):
                model(self._input)
        torch.cuda.current_stream(batch.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # torch's own stream for captures lies on the GPU that was current first: kernels on another one would
        # not be captured. Threads that decode ahead may allocate meanwhile. A capture that fails does not
        # leave the stream, hence the first line
        with (
            torch.cuda.stream(side),
            torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"),
            autocast(batch.device, precision),
        ):
            self._output = model(self._input)

    def __call__(self, batch: torch.Tensor) -> Output:
        self._input[: len(batch)].copy_(batch)
        self._graph.replay()
        return Output(*(part[: len(batch)] for part in self._output))
