"""The doctor tries every part and never fails itself."""

import sys
from importlib import metadata
from types import ModuleType

import pytest

from meal_gpu import doctor
from meal_gpu.doctor import Finding, examine


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.part: finding for finding in examine()}


def test_every_part_is_looked_at_once(findings: dict[str, Finding]) -> None:
    everywhere = ["torch", "segmentation-models-pytorch", "umap-learn", "DALI"]
    assert list(findings) == [*everywhere, "CuPy", "cuML", "cuDF"]


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("torch", "the reference ops"),
        ("segmentation-models-pytorch", "DeepLabV3+ MobileNetV2, 4.4 M parameters"),
        ("umap-learn", "gave (64, 2)"),
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


@pytest.mark.parametrize("part", ["CuPy", "cuML", "cuDF"])
def test_what_needs_a_gpu_works_or_has_a_fix(part: str, findings: dict[str, Finding]) -> None:
    finding = findings[part]
    assert finding.works or "pip install 'meal-gpu[cuda13]'" in finding.fix
    assert (finding.works is None) == (finding.version is None)


def one(monkeypatch: pytest.MonkeyPatch, package: str, probe: object) -> Finding:
    monkeypatch.setattr(doctor, "_PARTS", (("Part", package, probe, "its purpose", "pip install it"),))
    (finding,) = examine()
    return finding


def test_a_part_that_is_not_installed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = one(monkeypatch, "no-such-package-on-earth", lambda: "never called")
    assert finding == Finding("Part", None, None, "not installed; would serve its purpose", "pip install it")


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
