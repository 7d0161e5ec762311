"""Randomness is data: every use derives its own stream from (seed, step, purpose).

Nothing is global and no state is ever saved, so a resumed run equals one that never stopped.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from meal_gpu.errors import InputError

_CPU = torch.device("cpu")


def stream(seed: int, step: int, purpose: str) -> np.random.Generator:
    """The independent Philox stream of (`seed`, `step`, `purpose`). InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"a seed is 0 or more; got {seed}")
    entropy = (seed, step, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def integer(seed: int, step: int, purpose: str) -> int:
    """One integer in [0, 2**31) for libraries that take a seed."""
    return int(stream(seed, step, purpose).integers(2**31))


def uniforms(seed: int, step: int, purpose: str, n: int) -> torch.Tensor:
    """[n] float64 in [0, 1) on the CPU; the first k of n are the same for every n >= k."""
    return torch.from_numpy(stream(seed, step, purpose).random(n))


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Within, torch's own generators of the CPU and of `device` are seeded; after it they are as before.

    No other GPU is touched: `torch.manual_seed` and a bare `fork_rng` would initialise all of a machine.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
