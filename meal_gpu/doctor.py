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

    from meal_gpu.inference import default_precision

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    fast = default_precision(torch.device("cpu")) == "bfloat16"
    hardware = "bfloat16 in hardware" if fast else "no bfloat16 in hardware"
    return f"CPU only, {torch.get_num_threads()} threads, {hardware}"


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

    import torch
    from PIL import Image

    from meal_gpu.images.loader import Loader

    def decode(path: Path, device: str) -> None:
        Image.new("RGB", (16, 16), (128, 128, 128)).save(path)
        (batch,) = Loader([path], (16, 16), device=device)
        # Decoders of JPEG may round differently
        close = bool(((batch.int() - 128).abs() <= 2).all())
        assert close, f"a pixel of a {path.suffix[1:].upper()} file decoded on the {device} device is wrong"

    with tempfile.TemporaryDirectory() as folder:
        decode(Path(folder) / "probe.png", "cpu")
        if not torch.cuda.is_available():
            return "decodes on the CPU"
        # PNG has no decoder on the GPU; JPEG shows whether the mixed one works
        decode(Path(folder) / "probe.jpg", "cuda")
    return "decodes on the CPU and, by the mixed decoder, on the GPU"


def _kernels() -> str:
    import math

    import torch

    from meal_gpu import ops
    from meal_gpu.grid import Grid

    entropy = float(ops.select("cpu").patch_entropy(torch.zeros(1, 2, 4, 4), Grid(1, 1, 8, 8), (8, 8), True))
    assert abs(entropy - math.log(2)) < 1e-6, f"the entropy of two equal logits is {entropy}, not log 2"
    return "compiled for this processor"


def _cupy() -> str:
    import cupy

    return f"{int(cupy.arange(4).sum())} = 6 on {cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}"


def _cuml() -> str:
    import cuml
    import cupy

    cuml.UMAP(n_neighbors=5).fit_transform(cupy.random.random((64, 4)))
    return "UMAP fits on the GPU"


def _cudf() -> str:
    import torch

    from meal_gpu.grid import Grid
    from meal_gpu.ledger import Ledger

    ledger = Ledger.create(Grid(2, 2, 4, 4), ["probe"], device="cuda")
    ledger.label(torch.tensor([1]), step=0)
    assert ledger.unlabelled().tolist() == [0, 2, 3], (
        "a ledger on the GPU does not find its unlabelled patches"
    )
    return "a ledger on the GPU finds its unlabelled patches"


# No package: its version is that of the C++ compiler there is
_COMPILER = "c++"
_EXTRA = "pip install 'meal-gpu[cuda13]' on a machine with an NVIDIA GPU"
# Part, package, probe, what it speeds up and how, fix
_PARTS: tuple[tuple[str, str, Callable[[], str], str, str], ...] = (
    ("torch", "torch", _torch, "the networks of every stage, and the reference ops",
     "pip install torch"),
    ("segmentation-models-pytorch", "segmentation-models-pytorch", _smp, "the network",
     "pip install segmentation-models-pytorch"),
    ("umap-learn", "umap-learn", _umap, "the manifold and the query's embedding, on the CPU",
     "pip install umap-learn"),
    ("DALI", "nvidia-dali-cuda130", _dali,
     "loading, before the query, by decoding many images at once, JPEG on the GPU where there is one",
     "pip install nvidia-dali-cuda130"),
    ("CPU kernels", _COMPILER, _kernels,
     "the query's scores and patches, and evaluation, on the CPU, by one fused loop in place of many torch "
     "operations that each read and write memory",
     "apt install g++ or set CXX; set MEAL_GPU_CACHE to a folder that can be written"),
    ("CuPy", "cupy-cuda13x", _cupy,
     "the query's scores, patches and choice, and evaluation, by one fused kernel in place of many torch "
     "operations that each read and write GPU memory", _EXTRA),
    ("cuML", "cuml-cu13", _cuml,
     "the manifold and the query's embedding, by UMAP on the GPU in place of the CPU", _EXTRA),
    ("cuDF", "cudf-cu13", _cudf,
     "the ledger, before and after the query, by columns that stay on the GPU and are searched there",
     _EXTRA),
)  # fmt: skip


def examine() -> list[Finding]:
    """Try every part once. Nothing is raised: a failure is a finding."""
    findings = []
    for part, package, probe, purpose, fix in _PARTS:
        if (version := _version(package)) is None:
            findings.append(Finding(part, None, None, f"not installed; would speed up {purpose}", fix))
            continue
        try:
            findings.append(Finding(part, version, True, f"{purpose}: {probe()}", ""))
        except Exception as error:  # whatever a broken installation raises is what the user must see
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            findings.append(Finding(part, version, False, f"{purpose}: {reason[:200]}", fix))
    return findings


def _version(package: str) -> str | None:
    if package == _COMPILER:
        from meal_gpu.ops import native

        return native.compiler_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ops_taken() -> str:
    """The ops that "auto" takes here, and why no faster ones."""
    import torch

    from meal_gpu import ops

    on_gpu = torch.cuda.is_available()
    chosen = ops.select_for(torch.device("cuda" if on_gpu else "cpu"))
    reasons = [ops.why_not_cuda(), None if on_gpu else ops.why_not_cpu()]
    told = "; ".join(reason for reason in reasons if reason)
    return f"{chosen.name} ({told})" if told else chosen.name
