"""What is installed, which parts work here, and why others do not."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: `works` is None where the part is not installed."""

    part: str
    version: str | None
    works: bool | None
    detail: str
    fix: str


def _torch() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    amx = "bfloat16 in hardware" if torch.cpu._is_amx_tile_supported() else "no bfloat16 in hardware"
    return f"CPU only, {torch.get_num_threads()} threads, {amx}"


def _smp() -> str:
    from meal_gpu.models import Builder

    model = Builder("smp", 19, "none")(0)
    return f"DeepLabV3+ MobileNetV2, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _umap() -> str:
    import torch

    from meal_gpu.manifold import Manifold

    points = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    shape = tuple(Manifold.fit(points, seed=0).embedding.shape)
    return f"fits and transforms on the CPU, gave {shape}"


def _dali() -> str:
    import tempfile
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from meal_gpu.data import Loader

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.png"
        Image.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(path)
        batch = next(iter(Loader([path], (16, 16))))
        assert bool((batch == 7).all()), "a decoded pixel is wrong"
    return "decodes on the CPU"


def _cupy() -> str:
    import cupy

    return f"{int(cupy.arange(4).sum())} = 6 on {cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}"


def _cuml() -> str:
    import cuml
    import cupy

    cuml.UMAP(n_neighbors=5).fit_transform(cupy.random.random((64, 4)))
    return "UMAP fits on the GPU"


def _cudf() -> str:
    import cudf

    return f"sum of a GPU column is {int(cudf.Series([1, 2]).sum())}"


_EXTRA = "pip install 'meal-gpu[cuda13]' on a machine with an NVIDIA GPU"
_PARTS: tuple[tuple[str, str, Callable[[], str], str, str], ...] = (
    ("torch", "torch", _torch, "the networks and the reference ops", "pip install torch"),
    ("segmentation-models-pytorch", "segmentation-models-pytorch", _smp, "DeepLabV3+",
     "pip install segmentation-models-pytorch"),
    ("umap-learn", "umap-learn", _umap, "the manifold on the CPU", "pip install umap-learn"),
    ("DALI", "nvidia-dali-cuda130", _dali, "decoding; on a GPU, JPEG in hardware",
     "pip install nvidia-dali-cuda130"),
    ("CuPy", "cupy-cuda13x", _cupy, "the fused kernels: entropy, gather, K-Means++, confusion", _EXTRA),
    ("cuML", "cuml-cu13", _cuml, "the manifold on the GPU", _EXTRA),
    ("cuDF", "cudf-cu13", _cudf, "the ledger on the GPU", _EXTRA),
)  # fmt: skip


def examine() -> list[Finding]:
    """Try every part once. Nothing is raised: a failure is a finding."""
    findings = []
    for part, package, probe, purpose, fix in _PARTS:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            findings.append(Finding(part, None, None, f"not installed; would serve {purpose}", fix))
            continue
        try:
            findings.append(Finding(part, version, True, f"{purpose}: {probe()}", ""))
        except Exception as error:  # whatever a broken installation raises is what the user must see
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            findings.append(Finding(part, version, False, f"{purpose}: {reason[:200]}", fix))
    return findings
