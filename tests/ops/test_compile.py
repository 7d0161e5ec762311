"""Kernels are found, whatever way the package was installed, and what is launched is what was written."""

import shutil
from pathlib import Path

import pytest
import torch

import meal_gpu
from meal_gpu.errors import UnavailableError
from meal_gpu.ops import compile

KERNELS = sorted(path.name for path in compile.folder().glob("*.cu"))


def test_there_is_a_kernel_per_operation() -> None:
    assert KERNELS == [
        "confusion.cu", "gather_patches.cu", "kmeans_plusplus.cu", "patch_classes.cu", "patch_committee.cu",
        "patch_entropy.cu", "patch_means.cu",
    ]  # fmt: skip
    assert {path.name for path in compile.folder().glob("*.cpp")} == {
        "cpu.cpp", "cpu_classes.cpp", "cpu_gather.cpp",
    }  # fmt: skip


@pytest.mark.parametrize("file", KERNELS)
def test_the_common_part_comes_first_and_nothing_is_included(file: str) -> None:
    source = compile.source(file)
    assert source.startswith((compile.folder() / "common.cuh").read_text())
    assert source.endswith((compile.folder() / file).read_text())
    # CuPy's cache would not see a change of an included file
    assert "#include" not in source


def pretend_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = root / "site" / "meal_gpu"
    (package / "ops").mkdir(parents=True)
    monkeypatch.setattr(compile, "__file__", str(package / "ops" / "compile.py"))
    return package


@pytest.mark.parametrize("place", ["meal_gpu/kernels", "kernels"])
def test_kernels_are_found_inside_the_package_and_beside_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compile.folder()
    package = pretend_install(tmp_path, monkeypatch)
    shutil.copytree(found, package.parent / place)
    assert compile.folder() == package.parent / place


def test_missing_kernels_are_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pretend_install(tmp_path, monkeypatch)
    # PyPI has a package called kernels: a folder of that name is not enough
    (package.parent / "kernels").mkdir()
    with pytest.raises(UnavailableError, match=f"no kernels/common.cuh in {package}"):
        compile.folder()


def test_a_wheel_carries_the_kernels() -> None:
    import tomllib

    project = tomllib.loads((Path(meal_gpu.__file__).parents[1] / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "kernels" in wheel["only-include"]
    assert wheel["sources"]["kernels"] == "meal_gpu/kernels"
    assert (Path(meal_gpu.__file__).parent / "py.typed").is_file()  # types are for users too


@pytest.mark.gpu
def test_launches_go_to_the_current_stream_of_torch() -> None:
    from meal_gpu.grid import Grid
    from meal_gpu.ops import cuda, reference

    logits = torch.randn(4, 19, 32, 64)
    expected = reference.patch_entropy(logits.double(), Grid(4, 4, 128, 256), (128, 256), True)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # the kernel must wait for the copy that was put on the same stream just before
        torch.cuda._sleep(50_000_000)
        actual = cuda.patch_entropy(
            logits.to("cuda", non_blocking=True), Grid(4, 4, 128, 256), (128, 256), True
        )
    side.synchronize()
    assert float((actual.cpu() - expected).abs().max()) <= 1e-6


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    from meal_gpu.grid import Grid
    from meal_gpu.ops import cuda

    logits = torch.randn(2, 19, 32, 64, device="cuda")
    labels = torch.zeros(2, 128, 256, dtype=torch.uint8, device="cuda")
    images = torch.zeros(2, 128, 256, 3, dtype=torch.uint8, device="cuda")
    patches = torch.arange(8, device="cuda")
    points = torch.randn(200, 2, device="cuda")
    uniforms = torch.rand(32, 1, dtype=torch.float64, device="cuda")
    grid = Grid(4, 4, 128, 256)

    def everything() -> None:
        cuda.patch_entropy(logits, grid, (128, 256), True)
        cuda.confusion(logits, labels, (128, 256), True, 255)
        cuda.patch_classes(logits, grid, (128, 256), True)
        cuda.patch_committee(logits[None], grid, (128, 256), True)
        cuda.gather_patches(images, labels, patches, grid, (0.5,) * 3, (0.2,) * 3, 255)  # type: ignore[arg-type]
        cuda.kmeans_plusplus(points, uniforms, None)

    everything()  # compiles, and brings the tables of the geometry to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")
