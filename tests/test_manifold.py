"""The manifold: one seed, one result; saved and loaded, the same numbers."""

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.manifold import trustworthiness

from meal_gpu.errors import InputError, RunError, UnavailableError
from meal_gpu.manifold import Manifold, subsample


def clusters(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Eight well-separated clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(8, width, generator=generator)
    which = torch.randint(8, (rows,), generator=generator)
    return centres[which] + torch.randn(rows, width, generator=generator)


FEATURES = clusters(300)
NEW = FEATURES[:40] + 0.01


@pytest.fixture(scope="module")
def manifold() -> Manifold:
    return Manifold.fit(FEATURES, seed=0)


def test_what_a_fit_holds(manifold: Manifold) -> None:
    assert (manifold.embedding.shape, manifold.embedding.dtype) == ((300, 2), torch.float32)
    assert torch.equal(manifold.rows, torch.arange(300))
    assert torch.equal(manifold.features, FEATURES)
    assert bool(manifold.embedding.isfinite().all())


def test_one_seed_gives_one_manifold_whatever_the_global_state(manifold: Manifold) -> None:
    np.random.seed(99)
    state = np.random.get_state()[1].copy()
    again = Manifold.fit(FEATURES, seed=0)
    assert torch.equal(again.embedding, manifold.embedding)
    assert torch.equal(again.transform(NEW), manifold.transform(NEW))
    assert (np.random.get_state()[1] == state).all()
    assert not torch.equal(Manifold.fit(FEATURES, seed=1).embedding, manifold.embedding)


def test_torch_keeps_its_threads(manifold: Manifold) -> None:
    # other threads are other bits in a later convolution: a resumed run would differ
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            Manifold.fit(FEATURES[:40], seed=0).transform(NEW)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_transform_is_repeatable_and_leaves_the_embedding(manifold: Manifold) -> None:
    before = manifold.embedding.clone()
    first = manifold.transform(NEW)
    assert (first.shape, first.dtype) == ((40, 2), torch.float32)
    assert torch.equal(manifold.transform(NEW), first)
    assert torch.equal(manifold.embedding, before)
    assert manifold.transform(NEW[:1]).shape == (1, 2)


def test_rows_land_near_their_likes(manifold: Manifold) -> None:
    # the fitted rows themselves have their fitted places; rows like them land beside them
    assert torch.equal(manifold.transform(FEATURES), manifold.embedding)
    spread = float(manifold.embedding.std(dim=0).norm())
    moved = (manifold.transform(NEW) - manifold.embedding[:40]).norm(dim=1)
    assert float(moved.median()) < 0.1 * spread


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_any_precision(dtype: torch.dtype, manifold: Manifold) -> None:
    rounded = NEW.to(dtype)
    assert torch.equal(manifold.transform(rounded), manifold.transform(rounded.float()))
    fitted = Manifold.fit(FEATURES[:60].to(dtype), seed=0)
    assert fitted.features.dtype == torch.float32
    assert torch.equal(fitted.embedding, Manifold.fit(FEATURES[:60].to(dtype).float(), seed=0).embedding)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_dimension_neighbors_and_distance_reach_umap(dimension: int) -> None:
    features = clusters(80)
    base = Manifold.fit(features, seed=0, dimension=dimension)
    assert base.embedding.shape == (80, dimension)
    assert base.transform(features[:3] + 0.01).shape == (3, dimension)
    for other in ({"neighbors": 5}, {"min_dist": 0.9}):
        fitted = Manifold.fit(features, seed=0, dimension=dimension, **other)
        assert not torch.equal(fitted.embedding, base.embedding)


def test_saved_and_loaded_it_gives_the_same_numbers(manifold: Manifold, tmp_path: Path) -> None:
    path = tmp_path / "umap.safetensors"
    before = manifold.transform(NEW)
    manifold.save(path)
    loaded = Manifold.load(path)
    for name in ("features", "rows", "embedding"):
        assert torch.equal(getattr(loaded, name), getattr(manifold, name))
    assert torch.equal(loaded.transform(NEW), before)
    assert torch.equal(loaded.transform(FEATURES), manifold.embedding)
    assert loaded.trustworthiness() == manifold.trustworthiness()
    # and once more: nothing drifts
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_one_that_cannot_be_saved_leaves_the_old_one(
    manifold: Manifold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "phi"
    manifold.save(path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match="phi: the manifold could not be written: No space left on device"):
        manifold.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    with pytest.raises(RunError, match="nowhere/phi: the manifold could not be written: No such file"):
        manifold.save(tmp_path / "nowhere" / "phi")


def test_settings_survive_saving(tmp_path: Path) -> None:
    features = clusters(80)
    fitted = Manifold.fit(features, seed=7, neighbors=6, min_dist=0.5, dimension=3)
    fitted.save(tmp_path / "m")
    loaded = Manifold.load(tmp_path / "m", device=torch.device("cpu"))
    assert torch.equal(loaded.transform(features[:9] + 0.01), fitted.transform(features[:9] + 0.01))


@pytest.mark.slow
def test_above_4096_rows_umap_searches_by_descent_and_still_reloads(tmp_path: Path) -> None:
    features = clusters(4200, width=8)
    fitted = Manifold.fit(features, seed=0, neighbors=5)
    fitted.save(tmp_path / "m")
    loaded = Manifold.load(tmp_path / "m")
    assert torch.equal(loaded.transform(features[:40] + 0.01), fitted.transform(features[:40] + 0.01))
    assert fitted.trustworthiness() > 0.9


def test_the_file_holds_tensors_and_text_only(manifold: Manifold, tmp_path: Path) -> None:
    path = tmp_path / "umap.safetensors"
    manifold.save(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {"features", "rows", "embedding"}
    expected = sum(getattr(manifold, name).nbytes for name in ("features", "rows", "embedding"))
    assert path.stat().st_size < expected + 1000  # no room for anything else


def test_large_pools_are_fitted_on_a_subsample() -> None:
    fitted = Manifold.fit(FEATURES, seed=3, limit=100)
    assert len(fitted.rows) == 100
    assert torch.equal(fitted.rows, fitted.rows.unique())  # ascending and distinct
    assert torch.equal(fitted.features, FEATURES[fitted.rows])
    assert fitted.transform(FEATURES).shape == (300, 2)
    assert torch.equal(Manifold.fit(FEATURES, seed=3, limit=100).rows, fitted.rows)
    assert not torch.equal(Manifold.fit(FEATURES, seed=4, limit=100).rows, fitted.rows)
    assert torch.equal(Manifold.fit(FEATURES, seed=3, limit=300).rows, torch.arange(300))


def test_trustworthiness_is_scikit_learns_and_high_on_structured_data(manifold: Manifold) -> None:
    expected = trustworthiness(FEATURES.numpy(), manifold.embedding.numpy(), n_neighbors=15)
    assert manifold.trustworthiness() == pytest.approx(expected, abs=1e-6)
    assert manifold.trustworthiness() > 0.95
    # an embedding of noise has no such quality
    noise = torch.rand(300, 2, generator=torch.Generator().manual_seed(0)).numpy()
    assert trustworthiness(FEATURES.numpy(), noise, n_neighbors=15) < 0.6


@pytest.mark.parametrize("rows", [4, 5, 16])
def test_a_handful_of_rows(rows: int) -> None:
    fitted = Manifold.fit(clusters(rows), seed=0)
    assert fitted.embedding.shape == (rows, 2)
    assert bool(fitted.embedding.isfinite().all())
    assert 0 <= fitted.trustworthiness() <= 1
    assert bool(fitted.transform(clusters(3, seed=5)).isfinite().all())


def test_rows_that_all_coincide() -> None:
    fitted = Manifold.fit(torch.ones(30, 4), seed=0)
    assert bool(fitted.embedding.isfinite().all())
    assert bool(fitted.transform(torch.ones(2, 4)).isfinite().all())


@pytest.mark.parametrize(
    ("features", "arguments", "told"),
    [
        (torch.zeros(30), {}, ("[M, D]", "[30]")),
        (torch.zeros(30, 4, dtype=torch.int64), {}, ("floating point", "torch.int64")),
        (torch.zeros(0, 4), {}, ("not empty", "[0, 4]")),
        (torch.zeros(30, 0), {}, ("not empty", "[30, 0]")),
        (torch.zeros(3, 4), {}, ("3 rows", "takes 4")),
        (torch.zeros(6, 4), {"dimension": 5}, ("6 rows", "takes 7")),
        (torch.zeros(30, 4), {"limit": 3}, ("3 rows", "takes 4")),
        (torch.zeros(30, 4), {"neighbors": 1}, ("neighbors must be at least 2, and whole", "got 1")),
        (torch.zeros(30, 4), {"neighbors": 2.5}, ("neighbors must be at least 2, and whole", "2.5")),
        (torch.zeros(30, 4), {"dimension": 0}, ("dimension must be at least 1, and whole", "got 0")),
        (torch.zeros(30, 4), {"seed": -1}, ("seed must be at least 0, and whole", "-1")),
        (torch.zeros(30, 4), {"seed": 2**32}, ("seed must be below 2**32", "4294967296")),
        (torch.zeros(30, 4), {"min_dist": 5.0}, ("min_dist must be between 0 and 1", "5.0")),
        (np.zeros((30, 4)), {}, ("features must be a torch.Tensor, got ndarray",)),
        (torch.tensor([[0.0]] * 9 + [[math.nan]]), {}, ("row 9",)),
        (torch.tensor([[0.0]] * 9 + [[-math.inf]]), {}, ("row 9",)),
    ],
)
def test_features_that_cannot_be_fitted(
    features: torch.Tensor, arguments: dict[str, int], told: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        Manifold.fit(features, **({"seed": 0} | arguments))  # type: ignore[arg-type]
    assert all(part in str(error.value) for part in told)


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (torch.zeros(2, 15), ("16 features", "15")),
        (torch.full((2, 16), math.nan), ("row 0",)),
        (torch.zeros(16), ("[16]",)),
        (torch.zeros(0, 16), ("not empty",)),
    ],
)
def test_features_that_cannot_be_transformed(
    features: torch.Tensor, told: tuple[str, ...], manifold: Manifold
) -> None:
    with pytest.raises(InputError) as error:
        manifold.transform(features)
    assert all(part in str(error.value) for part in told)


def test_files_that_are_no_manifold_are_named(manifold: Manifold, tmp_path: Path) -> None:
    manifold.save(tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    (tmp_path / "text").write_text("not tensors")
    save_file({"features": FEATURES}, tmp_path / "tensors")
    save_file({"features": FEATURES}, tmp_path / "settings", {"meal_gpu.manifold/1": "{}"})
    for name in ("cut", "text", "tensors", "settings", "nothing"):
        with pytest.raises(RunError, match=f"{tmp_path / name}: not a"):
            Manifold.load(tmp_path / name)


def test_one_seed_gives_one_map_also_where_the_graph_falls_apart() -> None:
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(8, 32, generator=g)
    features = centres[torch.randint(8, (80,), generator=g)] + torch.randn(80, 32, generator=g)
    first, *others = (Manifold.fit(features, seed=0).embedding for _ in range(4))
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, Manifold.fit(features, seed=1).embedding)


@pytest.mark.parametrize("build", ["exact", "brute_force_knn", "nn_descent"])
def test_every_build_keeps_as_many_neighbours(build: str) -> None:
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(8, 32, generator=g)
    features = centres[torch.randint(8, (900,), generator=g)] + torch.randn(900, 32, generator=g)
    usual, other = (Manifold.fit(features, seed=0, build=name) for name in ("auto", build))
    assert abs(usual.trustworthiness() - other.trustworthiness()) <= 0.02
    again = Manifold.fit(features, seed=0, build=build)
    assert torch.equal(again.embedding, other.embedding)
    new = features[:20] + 0.05
    placed = other.transform(new)
    assert torch.equal(placed, again.transform(new))
    # near where their neighbours are
    spread = other.embedding.std()
    assert float((placed - other.embedding[:20]).norm(dim=1).median()) < 0.3 * float(spread)


def test_the_build_is_kept_in_the_file(tmp_path: Path) -> None:
    features = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    fitted = Manifold.fit(features, seed=0, build="exact")
    fitted.save(tmp_path / "umap.safetensors")
    loaded = Manifold.load(tmp_path / "umap.safetensors")
    assert loaded._settings == fitted._settings
    assert torch.equal(loaded.embedding, fitted.embedding)
    assert loaded.library == fitted.library


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    features = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    fitted = Manifold.fit(features, seed=0)
    tensors = {"features": fitted.features, "rows": fitted.rows, "embedding": fitted.embedding}
    meta = '{"neighbors": 15, "min_dist": 0.1, "dimension": 2, "seed": 0}'
    save_file(tensors, tmp_path / "old.safetensors", {"meal_gpu.manifold/1": meta})
    assert Manifold.load(tmp_path / "old.safetensors")._settings == fitted._settings


def test_without_a_seed_it_runs_in_parallel_and_is_as_good() -> None:
    g = torch.Generator().manual_seed(0)
    centres = 6 * torch.randn(8, 32, generator=g)
    features = centres[torch.randint(8, (600,), generator=g)] + torch.randn(600, 32, generator=g)
    threads = torch.get_num_threads()
    free = Manifold.fit(features, seed=0, deterministic=False)
    assert torch.get_num_threads() == threads
    assert abs(free.trustworthiness() - Manifold.fit(features, seed=0).trustworthiness()) <= 0.03


def test_unknown_builds_are_named() -> None:
    with pytest.raises(InputError, match="unknown build 'kd-tree'; known: auto, exact, brute_force_knn"):
        Manifold.fit(torch.rand(60, 4), seed=0, build="kd-tree")


@given(count=st.integers(1, 10_000), limit=st.integers(1, 300), seed=st.integers(0, 9))
def test_a_subsample_has_one_row_of_every_stretch(count: int, limit: int, seed: int) -> None:
    rows = subsample(count, limit, seed)
    assert rows.dtype == torch.int64 and len(rows) == min(count, limit)
    if count <= limit:
        assert rows.tolist() == list(range(count))
        return
    edges = [stretch * count // limit for stretch in range(limit + 1)]
    for row, low, high in zip(rows.tolist(), edges, edges[1:], strict=False):
        assert low <= row < high
    assert torch.equal(rows, subsample(count, limit, seed))


def test_a_subsample_draws_all_rows_alike() -> None:
    counts = sum(torch.bincount(subsample(40, 10, seed), minlength=40) for seed in range(2_000))
    assert isinstance(counts, torch.Tensor)
    assert int(counts.min()) > 430 and int(counts.max()) < 570  # of 500 ± 19


def test_a_manifold_that_holds_nan_is_named(tmp_path: Path) -> None:
    for name in ("features", "embedding"):
        fitted = Manifold.fit(torch.rand(12, 4, generator=torch.Generator().manual_seed(0)), seed=0)
        getattr(fitted, name)[3, 0] = torch.nan
        fitted.save(tmp_path / name)
        with pytest.raises(RunError, match=f"{name}: holds NaN or infinite values"):
            Manifold.load(tmp_path / name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="device 'cuda': torch sees no GPU; load it onto the CPU"):
        Manifold.load(tmp_path / "m", device="cuda")
