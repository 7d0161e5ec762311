"""What a device can do at most, measured, and how long a given amount of work takes it at least."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# An exponential on a CPU: range reduction, a polynomial of degree 5, scaling; ten operations that could each
# have been a multiplication and an addition
EXPONENTIAL_FLOPS = 20
# "CUDA C++ Programming Guide", throughput of native arithmetic instructions: special functions per clock of a
# multiprocessor, compute capability 7.x to 12.x
SPECIAL_PER_CLOCK = 16
ROUNDS = 7


@dataclass(frozen=True)
class Work:
    """What has to be done at least.

    Attributes:
        moved: bytes, each input read once and each output written once.
        matrix_flops: in convolutions and matrix products, in `precision`.
        vector_flops: elsewhere, in float32; two for each operation that could have been a fused one.
        special: exponentials.
    """

    moved: float
    matrix_flops: float = 0.0
    vector_flops: float = 0.0
    special: float = 0.0
    precision: str = "float32"


@dataclass(frozen=True)
class Limits:
    """Of one device: bytes, operations and special functions per second.

    `copy` counts bytes read and written by a large copy. `matrix` are the rates of a large matrix product, by
    precision. `vector` is that in float32, which runs on the vector units. `special` is counted, not
    measured: see the constants above.
    """

    copy: float
    matrix: dict[str, float]
    vector: float
    special: float

    def floor(self, work: Work) -> tuple[float, str]:
        """The seconds that the binding limit asks for, and which that is."""
        needed = {
            "copy": work.moved / self.copy,
            f"matrix, {work.precision}": work.matrix_flops / self.matrix[work.precision],
            "vector": work.vector_flops / self.vector,
            "special": work.special / self.special,
        }
        limit = max(needed, key=needed.__getitem__)
        return needed[limit], limit


def measured(device: torch.device) -> Limits:
    """Takes a few seconds."""
    on_gpu = device.type == "cuda"
    copy = _copy_rate((1 << 30) if on_gpu else (256 << 20), device)
    size = 8192 if on_gpu else 2048
    matrix: dict[str, float] = {}
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32
    try:
        for name, dtype in (
            ("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16),
        ):  # fmt: skip
            if name == "float16" and not on_gpu:
                matrix[name] = matrix["float32"]  # computed in float32 there
                continue
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            matrix[name] = 2 * size**3 / _best(lambda a=a, b=b: a @ b, device)
    finally:
        torch.set_float32_matmul_precision(allowed)
    if on_gpu:
        properties = torch.cuda.get_device_properties(device)
        # Each of 128 lanes does two operations a clock: the clock that the product ran at
        lanes = 128 * properties.multi_processor_count
        special = SPECIAL_PER_CLOCK * properties.multi_processor_count * matrix["float32"] / (2 * lanes)
    else:
        special = matrix["float32"] / EXPONENTIAL_FLOPS
    return Limits(copy, matrix, matrix["float32"], special)


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(ROUNDS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
