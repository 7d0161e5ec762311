"""The doctor tries every part and never fails itself."""

import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from meal_gpu import doctor, memory, ops
from meal_gpu.doctor import Finding, examine


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.part: finding for finding in examine()}


def test_every_part_is_looked_at_once(findings: dict[str, Finding]) -> None:
    everywhere = ["torch", "segmentation-models-pytorch", "umap-learn", "DALI"]
    assert list(findings) == [*everywhere, "CPU kernels", "CuPy", "cuML", "cuDF"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("torch", "the reference ops"),
        ("segmentation-models-pytorch", "the network: DeepLabV3+ MobileNetV2, 4.4 M parameters"),
        ("umap-learn", "the query's embedding, on the CPU: fits and transforms on the CPU, gave (64, 2)"),
        ("DALI", "decodes on the CPU"),
    ],
)
def test_what_every_installation_has_works(part: str, told: str, findings: dict[str, Finding]) -> None:
    finding = findings[part]
    assert finding.works, finding.detail
    assert told in finding.detail
    assert finding.fix == ""
    assert finding.version
    assert finding.version[0].isdigit()


@pytest.mark.parametrize(
    ("part", "stage"),
    [
        ("CPU kernels", "the query's scores and patches, and evaluation, on the CPU, by one fused loop"),
        ("CuPy", "the query's scores, patches and choice, and evaluation, by one fused kernel"),
        ("cuML", "the manifold and the query's embedding, by UMAP on the GPU"),
        ("cuDF", "the ledger, before and after the query, by columns that stay on the GPU"),
    ],
)
def test_what_not_every_machine_has_works_or_has_a_fix(
    part: str, stage: str, findings: dict[str, Finding]
) -> None:
    finding = findings[part]
    assert stage in finding.detail
    fix = "apt install g++" if part == "CPU kernels" else "pip install 'meal-gpu[cuda13]'"
    assert finding.works or fix in finding.fix
    assert (finding.works is None) == (finding.version is None)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("broken", [False, True])
def test_the_gpus_own_decoder_is_tried_where_there_is_one(
    gpu: bool, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []

    def loader(paths: list[Path], size: tuple[int, int], *, device: str) -> list[torch.Tensor]:
        tried.append((paths[0].suffix, device))
        with Image.open(paths[0]) as image:
            pixels = torch.from_numpy(np.array(image))[None]
        return [pixels + 9 if broken and device == "cuda" else pixels]

    monkeypatch.setattr("meal_gpu.images.loader.Loader", loader)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    finding = one(monkeypatch, "torch", doctor._dali)
    assert tried == [(".png", "cpu"), (".jpg", "cuda")][: 1 + gpu]
    assert finding.works is not (gpu and broken)
    assert ("a pixel of a JPG file decoded on the cuda device is wrong" in finding.detail) == (gpu and broken)
    assert ("by the mixed decoder, on the GPU" in finding.detail) == (gpu and not broken)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("part", "package"), [("DALI", "nvidia.dali"), ("CuPy", "cupy"), ("cuML", "cuml"), ("cuDF", "cudf")]
)
def test_on_a_gpu_what_is_installed_works(part: str, package: str, findings: dict[str, Finding]) -> None:
    pytest.importorskip(package)
    assert findings[part].works, findings[part].detail


def one(monkeypatch: pytest.MonkeyPatch, package: str, probe: object) -> Finding:
    monkeypatch.setattr(doctor, "_PARTS", (("Part", package, probe, "its purpose", "pip install it"),))
    (finding,) = examine()
    return finding


def test_a_part_that_is_not_installed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = one(monkeypatch, "no-such-package-on-earth", lambda: "never called")
    assert finding == Finding(
        "Part", None, None, "not installed; would speed up its purpose", "pip install it"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("cudaErrorNoDevice\nand a long trace"), "its purpose: cudaErrorNoDevice"),
        (ImportError(), "its purpose: ImportError"),
        (OSError("x" * 500), "its purpose: " + "x" * 200),
    ],
)
def test_a_part_that_is_broken_says_how_in_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe() -> str:
        raise error

    finding = one(monkeypatch, "torch", probe)
    assert finding == Finding("Part", metadata.version("torch"), False, told, "pip install it")


def test_a_gpu_package_without_a_gpu_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("cupy")

    def arange(_: int) -> None:
        raise RuntimeError("no CUDA-capable device is detected")

    fake.arange = arange  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", fake)
    with pytest.raises(RuntimeError):
        doctor._cupy()
    assert "no CUDA-capable device" in one(monkeypatch, "torch", doctor._cupy).detail


@pytest.mark.parametrize(
    ("compiler", "works", "told"),
    [
        ("/no/such/c++", None, "not installed; would speed up the query's scores"),
        ("/bin/false", False, "the C++ compiler /bin/false fails: it ended with 1"),
    ],
)
def test_cpu_kernels_that_cannot_work_are_a_finding(
    compiler: str, works: bool | None, told: str, fresh_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(doctor, "_PARTS", tuple(part for part in doctor._PARTS if part[0] == "CPU kernels"))
    (finding,) = examine()
    assert (finding.version is None, finding.works) == (works is None, works)
    assert told in finding.detail
    assert "apt install g++ or set CXX; set MEAL_GPU_CACHE" in finding.fix


@pytest.mark.parametrize(
    ("gpu", "cuda", "cpu", "line"),
    [
        (False, "no GPU", None, "cpu (no GPU)"),
        (False, "no GPU", "no compiler", "reference (no GPU; no compiler)"),
        # arrays on a GPU are not for the CPU's kernels
        (True, "no CuPy", None, "reference (no CuPy)"),
        (True, None, "no compiler", "cuda"),
    ],
)
@pytest.mark.filterwarnings("ignore:the slower reference ops")
def test_the_last_line_names_the_ops_and_why_no_faster_ones(
    gpu: bool, cuda: str | None, cpu: str | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(ops, "why_not_cuda", lambda: cuda)
    monkeypatch.setattr(ops, "why_not_cpu", lambda: cpu)
    monkeypatch.setattr(memory, "share_allocator", lambda: None)
    assert doctor.ops_taken() == line
