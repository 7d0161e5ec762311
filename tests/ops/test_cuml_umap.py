"""UMAP by cuML against umap-learn, on a GPU; what both promise is in test_manifold."""

from pathlib import Path

import pytest
import torch

from meal_gpu.errors import InputError
from meal_gpu.manifold import Manifold
from meal_gpu.ops import cuml_umap, reference

BUILDS = ("auto", "exact", "brute_force_knn", "nn_descent")


def blobs(rows: int = 1500, columns: int = 32) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(8, columns, generator=g)
    return centres[torch.randint(8, (rows,), generator=g)] + torch.randn(rows, columns, generator=g)


def test_without_cuml_or_a_gpu_it_is_the_twin_and_says_so() -> None:
    features = blobs(80)
    arguments = {
        "neighbors": 15, "min_dist": 0.1, "dimension": 2, "seed": 0, "build": "auto", "deterministic": True,
        "embedding": None,
    }  # fmt: skip
    ours = cuml_umap.umap_fit(features, **arguments)  # type: ignore[arg-type]
    twin = reference.umap_fit(features, **arguments)  # type: ignore[arg-type]
    assert ours.library == twin.library
    assert ours.library.startswith("umap-learn ")
    assert torch.equal(ours.embedding, twin.embedding)


@pytest.fixture(scope="module")
def cuml() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    version: str = pytest.importorskip("cuml").__version__
    return version


@pytest.mark.gpu
@pytest.mark.parametrize("build", BUILDS)
def test_both_libraries_keep_as_many_neighbours(cuml: str, build: str) -> None:
    features = blobs()
    theirs = Manifold.fit(features, seed=0)
    ours = Manifold.fit(features.cuda(), seed=0, build=build, deterministic=build != "nn_descent")
    assert ours.library == f"cuml {cuml}"
    assert ours.embedding.is_cuda
    assert abs(ours.trustworthiness() - theirs.trustworthiness()) <= 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("build", ["auto", "exact", "brute_force_knn"])
def test_one_seed_gives_one_map(cuml: str, build: str, tmp_path: Path) -> None:
    features = blobs().cuda()
    first, second = (Manifold.fit(features, seed=3, build=build) for _ in range(2))
    assert torch.equal(first.embedding, second.embedding)
    new = blobs(40).cuda() + 0.1
    placed = first.transform(new)
    assert placed.shape == (40, 2)
    assert torch.equal(placed, second.transform(new))
    first.save(tmp_path / "umap.safetensors")
    loaded = Manifold.load(tmp_path / "umap.safetensors", device="cuda")
    assert torch.equal(loaded.embedding, first.embedding)
    torch.testing.assert_close(loaded.transform(new), placed, rtol=1e-3, atol=1e-2)


@pytest.mark.gpu
def test_nn_descent_is_not_called_deterministic(cuml: str) -> None:
    with pytest.raises(InputError, match="not repeatable"):
        Manifold.fit(blobs(300).cuda(), seed=0, build="nn_descent")
