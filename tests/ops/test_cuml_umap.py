"""UMAP by cuML: what is asked of it, on a stand-in; what it gives, on a GPU."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from meal_gpu import memory
from meal_gpu.errors import InputError, UnavailableError
from meal_gpu.manifold import Manifold
from meal_gpu.ops import cuda, cuml_umap, reference
from meal_gpu.ops.neighbors import nearest_neighbors


def clusters(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    """Eight well-separated clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(8, width, generator=generator)
    which = torch.randint(8, (rows,), generator=generator)
    return centres[which] + torch.randn(rows, width, generator=generator)


class StandIn:
    """cuML's UMAP as far as it is used: it keeps what it is given and embeds by the first columns."""

    made: list["StandIn"]

    def __init__(self, **settings: Any) -> None:
        self.asked = dict(settings)
        self.n_epochs = self.init = self.knn_graph = None
        vars(self).update(settings)
        self.made.append(self)

    def set_params(self, **settings: Any) -> None:
        assert set(settings) <= {"init", "n_epochs"}
        vars(self).update(settings)

    def fit(self, rows: Any, *, knn_graph: Any = None) -> None:
        self.rows, self.knn_graph, self.fitted_epochs = rows, knn_graph, self.n_epochs
        self.embedding_ = np.ascontiguousarray(rows[:, : self.asked["n_components"]])

    def transform(self, rows: Any) -> Any:
        assert self.n_epochs is None, "cuML cannot transform after one epoch"
        self.transformed = rows
        return np.ascontiguousarray(rows[:, : self.asked["n_components"]]) + 1


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    """The models that were made of a cuML that takes the CPU for its GPU."""
    models: list[StandIn] = []
    monkeypatch.setattr(StandIn, "made", models, raising=False)
    device = SimpleNamespace(
        Device=lambda _: contextlib.nullcontext(), Stream=SimpleNamespace(ptds=contextlib.nullcontext())
    )
    stand_in = SimpleNamespace(
        UMAP=StandIn, __version__="26.10.00",
        using_output_type=lambda kind: contextlib.nullcontext() if kind == "cupy" else pytest.fail(kind),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cuml", stand_in)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=np.from_dlpack, cuda=device))
    monkeypatch.setattr(cuml_umap, "_serves", lambda _: True)
    monkeypatch.setattr(cuml_umap, "_meet", lambda _: None)
    monkeypatch.setattr(cuml_umap, "_THREAD", SimpleNamespace())
    monkeypatch.setattr(memory, "share_allocator", lambda _: None)
    return models


FEATURES = clusters(200)


@pytest.mark.parametrize(
    ("rows", "arguments", "asked"),
    [
        (200, {}, {"n_neighbors": 15, "min_dist": 0.1, "n_components": 2, "random_state": 7}),
        (200, {}, {"build_algo": "auto", "output_type": "cupy"}),
        (200, {"neighbors": 9, "min_dist": 0.5, "dimension": 3}, {"n_neighbors": 9, "n_components": 3}),
        (10, {}, {"n_neighbors": 9}),
        (200, {"build": "exact"}, {"build_algo": "brute_force_knn"}),
        (200, {"build": "brute_force_knn"}, {"build_algo": "brute_force_knn"}),
        (
            200,
            {"build": "nn_descent", "deterministic": False},
            {"build_algo": "nn_descent", "random_state": None},
        ),
        (100, {"build": "nn_descent", "deterministic": False}, {"build_algo": "brute_force_knn"}),
        (
            200,
            {"neighbors": 80},
            {"build_kwds": {"nnd_graph_degree": 80, "nnd_intermediate_graph_degree": 160}},
        ),
        (200, {"deterministic": False}, {"build_algo": "auto", "random_state": None}),
    ],
)
def test_what_cuml_is_asked_for(
    rows: int, arguments: dict[str, Any], asked: dict[str, Any], made: list[StandIn]
) -> None:
    fitted = Manifold.fit(FEATURES[:rows], seed=7, ops=cuda, **arguments)
    (model,) = made
    assert {name: model.asked[name] for name in asked} == asked
    assert (model.knn_graph is not None) == (arguments.get("build") == "exact")
    assert fitted.library == "cuml 26.10.00"
    # zero-copy in, a copy of its own out
    assert model.rows.ctypes.data == fitted.features.data_ptr()
    assert fitted.embedding.data_ptr() != model.embedding_.ctypes.data
    assert torch.equal(fitted.transform(FEATURES[:5] + 1), (FEATURES[:5] + 2)[:, : fitted.embedding.shape[1]])


def test_cuml_works_on_the_gpu_of_the_features(made: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[torch.device] = []
    called: list[tuple[str, list[torch.device]]] = []

    @contextlib.contextmanager
    def current(device: torch.device) -> Iterator[None]:
        within.append(device)
        yield
        within.pop()

    monkeypatch.setattr(memory, "current", current)
    for name in ("__init__", "fit", "transform"):
        real = getattr(StandIn, name)

        def noted(self: StandIn, *given: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            called.append((name, list(within)))
            return real(self, *given, **more)

        monkeypatch.setattr(StandIn, name, noted)
    Manifold.fit(FEATURES, seed=0, ops=cuda).transform(FEATURES[:3])
    here = [FEATURES.device]
    assert called == [("__init__", here), ("fit", here), ("transform", here)]


def test_cuml_works_on_one_gpu_in_a_thread(made: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps a handle of the first, which would be used on the second."""
    fitted = Manifold.fit(FEATURES, seed=0, ops=cuda)
    monkeypatch.setattr(cuml_umap._THREAD, "device", torch.device("cuda", 1))
    for work in (lambda: fitted.transform(FEATURES[:3]), lambda: Manifold.fit(FEATURES, seed=0, ops=cuda)):
        with pytest.raises(UnavailableError, match=r"worked on cuda:1 in this thread .* on cpu in"):
            work()


def test_the_exact_graph_is_ours(made: list[StandIn]) -> None:
    Manifold.fit(FEATURES, seed=0, build="exact", ops=cuda)
    assert isinstance(made[0].knn_graph, tuple)
    for given, expected in zip(made[0].knn_graph, nearest_neighbors(FEATURES, 15), strict=True):
        assert torch.equal(torch.from_numpy(given.copy()), expected)
    assert (made[0].knn_graph[0].dtype, made[0].knn_graph[1].dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("build", ["auto", "exact", "nn_descent"])
def test_a_stored_map_takes_its_embedding_back(build: str, made: list[StandIn], tmp_path: Path) -> None:
    fitted = Manifold.fit(FEATURES, seed=0, build=build, deterministic=build != "nn_descent", ops=cuda)
    fitted.embedding += 5  # unlike what the stand-in makes of the features
    fitted.save(tmp_path / "m")
    loaded = Manifold.load(tmp_path / "m", ops=cuda)
    assert torch.equal(loaded.embedding, fitted.embedding)
    model = made[1]
    assert (model.fitted_epochs, model.n_epochs, model.knn_graph) == (1, None, None)
    assert np.array_equal(model.init, fitted.embedding.numpy())
    assert np.array_equal(model.embedding_, fitted.embedding.numpy())
    assert model.asked["build_algo"] == ("auto" if build == "auto" else "brute_force_knn")


def test_rows_at_the_address_of_the_fitted_ones_are_copied(made: list[StandIn]) -> None:
    # cuML would take them for all the fitted rows, and write as many
    fitted = Manifold.fit(FEATURES, seed=0, ops=cuda)
    fitted.transform(fitted.features[:10])
    assert made[0].transformed.ctypes.data != made[0].rows.ctypes.data
    assert np.array_equal(made[0].transformed, made[0].rows[:10])
    fitted.transform(fitted.features.T.contiguous().T[:10])  # and any layout is made contiguous
    assert made[0].transformed.flags.c_contiguous


def test_a_build_that_cannot_be_repeated_is_refused(made: list[StandIn]) -> None:
    with pytest.raises(InputError, match="not repeatable: pass deterministic=False"):
        Manifold.fit(FEATURES, seed=0, build="nn_descent", ops=cuda)
    assert not made


def test_without_cuml_the_twin_works_and_is_named() -> None:
    ours, twin = (Manifold.fit(FEATURES, seed=0, ops=implementation) for implementation in (cuda, reference))
    assert ours.library == twin.library
    assert ours.library.startswith("umap-learn ")
    assert torch.equal(ours.embedding, twin.embedding)


@pytest.fixture
def cuml() -> None:
    pytest.importorskip("cuml")
    pytest.importorskip("cupy")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuml")
@pytest.mark.parametrize("rows", [200, 2000, 6000])
@pytest.mark.parametrize("build", ["auto", "exact", "brute_force_knn", "nn_descent"])
def test_cuml_is_as_trustworthy_as_umap_learn(build: str, rows: int) -> None:
    features = clusters(rows, 32)
    theirs = Manifold.fit(features, seed=0, ops=reference)
    repeatable = build != "nn_descent"
    ours = Manifold.fit(features.cuda(), seed=0, build=build, deterministic=repeatable, ops=cuda)
    assert ours.library.startswith("cuml ")
    assert (ours.embedding.device.type, ours.embedding.dtype) == ("cuda", torch.float32)
    assert abs(ours.trustworthiness() - theirs.trustworthiness()) < 0.02


@pytest.mark.gpu
@pytest.mark.usefixtures("cuml")
@pytest.mark.parametrize("build", ["auto", "exact", "brute_force_knn"])
def test_one_seed_gives_cumls_same_bits(build: str) -> None:
    features = clusters(2000, 32).cuda()
    first, again = (Manifold.fit(features, seed=3, build=build, ops=cuda) for _ in range(2))
    assert torch.equal(first.embedding, again.embedding)
    new = features[:100] + 0.01
    assert torch.equal(first.transform(new), again.transform(new))
    assert not torch.equal(Manifold.fit(features, seed=4, build=build, ops=cuda).embedding, first.embedding)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuml")
@pytest.mark.parametrize("build", ["auto", "exact", "nn_descent"])
def test_cumls_map_saves_loads_and_transforms(build: str, tmp_path: Path) -> None:
    features = clusters(2000, 32).cuda()
    repeatable = build != "nn_descent"
    fitted = Manifold.fit(features, seed=0, build=build, deterministic=repeatable, ops=cuda)
    fitted.save(tmp_path / "m")
    loaded = Manifold.load(tmp_path / "m", device="cuda", ops=cuda)
    assert torch.equal(loaded.embedding, fitted.embedding)
    new = features[:100] + 0.01
    before, after = fitted.transform(new), loaded.transform(new)
    if repeatable:
        assert torch.equal(after, before)
    spread = float(fitted.embedding.std(dim=0).norm())
    for there in (before, after):
        assert float((there - fitted.embedding[:100]).norm(dim=1).median()) < 0.1 * spread
    # rows at the address of the fitted ones, fewer of them
    assert bool(fitted.transform(fitted.features[:100]).isfinite().all())


@pytest.mark.gpu
@pytest.mark.usefixtures("cuml")
def test_torchs_current_stream_is_waited_for() -> None:
    features = clusters(2000, 32).cuda()
    fitted = Manifold.fit(features, seed=0, ops=cuda)
    new = features[:100] + 0.01
    expected = fitted.transform(new)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.zeros_like(new)
        torch.cuda._sleep(200_000_000)
        late.copy_(new)
        actual = fitted.transform(late, check=False)
    side.synchronize()
    assert torch.equal(actual, expected)
