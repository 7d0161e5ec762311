"""The table of the pool: who is labelled since which step."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu import frame as frames
from meal_gpu.errors import InputError, RunError
from meal_gpu.grid import Grid
from meal_gpu.ledger import UNLABELLED, Ledger, Origin

GRID = Grid(2, 3, 5, 7)
NAMES = ("aachen/a.png", "ulm/ü <b>.png")


class StandInSeries:
    """As much of cudf.Series as frame.py uses, in host memory: the other half of it runs without a GPU."""

    def __init__(self, values: torch.Tensor, *, nan_as_null: bool) -> None:
        assert nan_as_null is False
        self.values = values.numpy()


class StandInFrame:
    def __init__(self, series: dict[str, StandInSeries]) -> None:
        self._series = dict(series)

    @property
    def columns(self) -> pd.Index:
        return pd.Index(self._series)

    def __len__(self) -> int:
        return len(self._series["patch"].values)

    def __getitem__(self, name: str) -> StandInSeries:
        return self._series[name]

    def __setitem__(self, name: str, series: StandInSeries) -> None:
        assert len(series.values) == len(self)
        self._series[name] = series


@pytest.fixture(scope="module", params=["cpu", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a ledger lies: in pandas, in a stand-in for cuDF, or in cuDF."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "stand-in":
            standin = SimpleNamespace(Series=StandInSeries, DataFrame=StandInFrame)
            patch.setattr(frames, "library", lambda device: standin)
        elif request.param == "cuda":
            pytest.importorskip("cudf")
        yield "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture
def ledger(device: str) -> Ledger:
    return Ledger.create(GRID, NAMES, device=device)


def table(ledger: Ledger) -> pd.DataFrame:
    """The frame in pandas, from its tensors: NaN stays NaN, and dtypes are what they are."""
    return pd.DataFrame(
        {name: frames.tensor(ledger.frame[name]).cpu().numpy() for name in ledger.frame.columns}
    )


def ids(*patches: int) -> torch.Tensor:
    return torch.tensor(patches, dtype=torch.int64)


def test_a_new_ledger(ledger: Ledger) -> None:
    assert len(ledger) == 12
    assert {column: str(kind) for column, kind in table(ledger).dtypes.items()} == {
        "patch": "int64", "image": "int32", "row": "int16", "column": "int16", "step": "int16",
        "score": "float32",
    }  # fmt: skip
    assert table(ledger)["patch"].tolist() == list(range(12))
    assert table(ledger)["image"].tolist() == 6 * [0] + 6 * [1]
    assert table(ledger)["row"].tolist() == 2 * (3 * [0] + 3 * [1])
    assert table(ledger)["column"].tolist() == 4 * [0, 1, 2]
    assert (table(ledger)["step"] == UNLABELLED).all()
    assert table(ledger)["score"].isna().all()
    assert len(ledger.labelled()) == 0
    assert torch.equal(ledger.unlabelled().cpu(), torch.arange(12))


def test_labelling(ledger: Ledger) -> None:
    ledger.label(ids(7, 2), step=0)
    ledger.label(ids(11), step=3)
    ledger.label(ids(), step=4)
    assert torch.equal(ledger.labelled().cpu(), ids(2, 7, 11))
    assert torch.equal(ledger.unlabelled().cpu(), ids(0, 1, 3, 4, 5, 6, 8, 9, 10))
    assert table(ledger)["step"].tolist() == [-1, -1, 0, -1, -1, -1, -1, 0, -1, -1, -1, 3]
    assert str(table(ledger)["step"].dtype) == "int16"


@pytest.mark.parametrize(
    ("patches", "told"),
    [
        ((12,), ("0 to 11", "12")),
        ((-1, 3), ("0 to 11", "-1")),
        ((3, 3), ("given twice",)),
        ((1, 2), ("patch 2", "step 5")),
    ],
)
def test_labelling_what_cannot_be_labelled_changes_nothing(
    patches: tuple[int, ...], told: tuple[str, ...], ledger: Ledger
) -> None:
    ledger.label(ids(2), step=5)
    before = table(ledger)
    with pytest.raises(InputError) as error:
        ledger.label(ids(*patches), step=6)
    assert all(part in str(error.value) for part in told)
    pd.testing.assert_frame_equal(table(ledger), before)


@pytest.mark.parametrize("step", [-1, -5, 40_000, 1.7, "1", None])
def test_a_step_that_is_none_is_refused(step: Any, ledger: Ledger) -> None:
    with pytest.raises(InputError, match=f"step must be 0 to 32767, and whole; got {step}"):
        ledger.label(ids(2), step)
    ledger.label(ids(2), np.int64(1))
    assert table(ledger)["step"].max() == 1


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "uint64"])
def test_ids_of_any_integer_kind_are_labelled(kind: str, device: str) -> None:
    read_only = np.array([9, 2], kind)
    read_only.flags.writeable = False
    for patches in ([9, 2], (np.int64(9), 2), read_only, torch.tensor([9, 2], dtype=getattr(torch, kind))):
        ledger = Ledger.create(GRID, NAMES, device=device)
        ledger.label([], step=0)
        ledger.label(patches, step=0)
        assert ledger.labelled().tolist() == [2, 9]


@pytest.mark.parametrize(
    ("patches", "told"),
    [
        (torch.tensor([1.0, 2.0]), "[2] torch.float32"),
        ([1.0, 2.0], "[2] torch.float64"),
        (torch.ones(12, dtype=torch.bool), "[12] torch.bool"),
        (np.array([0, 1], np.uint8), "[2] torch.uint8"),  # a mask of two patches, or the ids 0 and 1
        ([True, False], "[2] torch.bool"),
        (torch.tensor(3), "[] torch.int64"),
        ([[1], [2]], "[2, 1] torch.int64"),
        (["1"], "can't convert"),
        ([1, [2]], "inhomogeneous"),
    ],
)
def test_what_are_no_ids_is_refused(patches: Any, told: str, ledger: Ledger) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        ledger.label(patches, step=0)
    assert len(ledger.labelled()) == 0


def test_names_are_text_and_each_is_given_once(tmp_path: Path) -> None:
    ledger = Ledger.create(GRID, [Path("a/b.png"), "c.png"])
    assert ledger.names == ("a/b.png", "c.png")
    assert ledger.extended([Path("c.png"), Path("d.png")]).names == ("a/b.png", "c.png", "d.png")
    ledger.write(str(tmp_path / "pool.parquet"))
    assert Ledger.read(str(tmp_path / "pool.parquet")).names == ledger.names
    for make in (lambda names: Ledger.create(GRID, names), ledger.extended):
        with pytest.raises(InputError, match="image 'e' is given twice"):
            make(["e", "f", Path("e")])
        for names in ("abc", 6):
            with pytest.raises(InputError, match=f"must be a list of the images' names, got {names!r}"):
                make(names)
    with pytest.raises(InputError, match=r"grid must be a meal_gpu\.Grid, got \(4, 4\)"):
        Ledger.create((4, 4), ["a"])  # type: ignore[arg-type]


def test_a_ledger_of_no_images_has_no_last_step() -> None:
    assert Ledger.create(GRID, []).last_step() == UNLABELLED


@pytest.mark.parametrize("shape", [(3,), (200,), (12, 1), ()])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...], ledger: Ledger) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"scores must be [12], one for each patch; got {list(shape)}")
    ):
        ledger.set_scores(torch.zeros(shape))


@given(st.lists(st.sets(st.integers(0, 11), max_size=4), max_size=6))
def test_labelled_and_unlabelled_partition_the_pool(device: str, queries: list[set[int]]) -> None:
    ledger = Ledger.create(GRID, NAMES, device=device)
    taken: set[int] = set()
    for step, query in enumerate(queries):
        ledger.label(ids(*(query - taken)), step)
        taken |= query
        assert ledger.labelled().tolist() == sorted(taken)
        assert ledger.unlabelled().tolist() == sorted(set(range(12)) - taken)


def test_scores_and_embedding_are_by_patch_id(ledger: Ledger) -> None:
    ledger.set_scores(torch.arange(12, dtype=torch.float64) / 8)
    ledger.set_embedding(ids(9, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert table(ledger)["score"].tolist() == [k / 8 for k in range(12)]
    assert table(ledger).loc[9, ["embedding_0", "embedding_1"]].tolist() == [1.0, 2.0]
    assert table(ledger).loc[4, ["embedding_0", "embedding_1"]].tolist() == [3.0, 4.0]
    assert table(ledger)["embedding_0"].notna().sum() == 2
    # the next step's candidates replace these
    ledger.set_embedding(ids(0), torch.tensor([[5.0, 6.0]]))
    assert table(ledger)["embedding_1"].dropna().to_dict() == {0: 6.0}
    assert str(table(ledger)["embedding_0"].dtype) == "float32"


def test_parquet_round_trip(ledger: Ledger, tmp_path: Path) -> None:
    ledger.label(ids(1, 8), step=2)
    ledger.set_scores(torch.rand(12, generator=torch.Generator().manual_seed(0)))
    ledger.set_embedding(ids(3, 5), torch.ones(2, 2))
    ledger.write(tmp_path / "ledger.parquet")
    again = Ledger.read(tmp_path / "ledger.parquet", device=ledger.device)
    assert type(again.frame) is type(ledger.frame)
    pd.testing.assert_frame_equal(table(again), table(ledger))
    assert (again.grid, again.names, again.origin) == (GRID, NAMES, None)
    again.label(ids(0), step=3)
    assert torch.equal(again.labelled().cpu(), ids(0, 1, 8))


def test_how_the_pool_began_is_kept(tmp_path: Path) -> None:
    origin = Origin("0" * 64, (16, 8))
    Ledger.create(Grid(2, 2, 8, 4), ["a"], origin=origin).write(tmp_path / "a.parquet")
    again = Ledger.read(tmp_path / "a.parquet")
    assert again.origin == again.extended(["b"]).origin == origin


def test_one_ledger_is_one_file(ledger: Ledger, tmp_path: Path) -> None:
    ledger.write(tmp_path / "a")
    ledger.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_is_what_pandas_would_write(ledger: Ledger, tmp_path: Path) -> None:
    """One content from every library: same bytes, types and nulls."""
    ledger.label(ids(3), step=1)
    ledger.set_scores(torch.arange(12.0))
    ledger.set_embedding(ids(3, 5), torch.ones(2, 2))
    ledger.write(tmp_path / "ledger.parquet")
    stored = pq.read_table(tmp_path / "ledger.parquet")
    assert {field.name: str(field.type) for field in stored.schema} == {
        "patch": "int64", "image": "int32", "row": "int16", "column": "int16", "step": "int16",
        "score": "float", "embedding_0": "float", "embedding_1": "float", "name": "large_string",
    }  # fmt: skip
    assert {name: stored[name].null_count for name in ("step", "score", "embedding_1")} == {
        "step": 0, "score": 0, "embedding_1": 10,
    }  # fmt: skip
    assert stored["name"].to_pylist() == [NAMES[0], *[None] * 5, NAMES[1], *[None] * 5]
    plain = pa.Table.from_pandas(table(ledger), preserve_index=False).append_column("name", stored["name"])
    pq.write_table(plain.replace_schema_metadata(stored.schema.metadata), tmp_path / "plain.parquet")
    assert (tmp_path / "ledger.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()


def test_a_ledger_keeps_what_it_was_given(ledger: Ledger) -> None:
    """Its memory is no one else's: neither the caller's tensors nor what it hands out changes it."""
    scores, embedding = torch.zeros(12), torch.zeros(1, 2)
    ledger.set_scores(scores)
    ledger.set_embedding(ids(1), embedding)
    scores += 1
    embedding += 1
    assert table(ledger)["score"].tolist() == [0] * 12
    assert table(ledger)["embedding_0"][1] == 0
    ledger.unlabelled().zero_()
    assert len(ledger.unlabelled()) == 12


def _with_metadata(path: Path, metadata: dict[bytes, bytes]) -> None:
    pq.write_table(pa.table({"patch": np.arange(3)}).replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {b"meal_gpu": b"{"},
        {b"meal_gpu": b"[]"},
        {b"meal_gpu": json.dumps({"grid": [2, 3], "images": []}).encode()},
        {b"meal_gpu": json.dumps({"grid": [2, 3], "size": [5, 7]}).encode()},
        {b"meal_gpu": json.dumps({"grid": [0, 3], "size": [5, 7], "images": []}).encode()},
    ],
)
def test_another_parquet_file_is_named(metadata: dict[bytes, bytes], tmp_path: Path) -> None:
    _with_metadata(tmp_path / "other.parquet", metadata)
    with pytest.raises(RunError, match=r"other\.parquet: not a ledger"):
        Ledger.read(tmp_path / "other.parquet")


def test_names_in_the_metadata_are_read_too(ledger: Ledger, tmp_path: Path) -> None:
    """As ledgers were written at first."""
    path = tmp_path / "ledger.parquet"
    ledger.label(ids(3), step=1)
    ledger.write(path)
    stored = pq.read_table(path)
    meta = json.loads(stored.schema.metadata[b"meal_gpu"]) | {"images": NAMES}
    stored = stored.drop_columns(["name"]).replace_schema_metadata({b"meal_gpu": json.dumps(meta).encode()})
    pq.write_table(stored, path)
    again = Ledger.read(path)
    assert (again.grid, again.names, again.labelled().tolist()) == (GRID, NAMES, [3])


def test_long_names_of_many_images_are_read_again(tmp_path: Path) -> None:
    """Parquet's metadata, where they once were, is written at any size but read up to 100 MB only."""
    names = [f"{'drive/' * 40}{k:09d}.png" for k in range(300_000)]
    Ledger.create(Grid(1, 1, 8, 8), names).write(tmp_path / "ledger.parquet")
    assert Ledger.read(tmp_path / "ledger.parquet").names == tuple(names)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.sort_by([("patch", "descending")]),
        lambda table: table.slice(0, 11),
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table, table]),
    ],
)
def test_rows_that_are_not_the_pool_are_refused(
    change: Callable[[pa.Table], pa.Table], ledger: Ledger, tmp_path: Path
) -> None:
    """Rows stand for patches by their place; tools that sort and filter keep the metadata."""
    path = tmp_path / "ledger.parquet"
    ledger.write(path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(RunError, match=r"ledger\.parquet: not a ledger .* rows, not the patches 0 to"):
        Ledger.read(path)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but not really"])
def test_a_damaged_or_missing_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        RunError, match=rf"ledger\.parquet: {'no such' if content is None else 'not a'} ledger"
    ):
        Ledger.read(path)


def test_a_truncated_ledger_is_named(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    ledger.write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"ledger\.parquet: not a ledger"):
        Ledger.read(path)


def test_a_grown_pool_keeps_what_is_known(device: str) -> None:
    ledger = Ledger.create(Grid(2, 2, 8, 8), ["a", "b"], device=device)
    ledger.label(ids(1, 6), 3)
    ledger.set_scores(torch.arange(8.0))
    ledger.set_embedding(ids(2), torch.tensor([[1.0, 2.0]]))
    grown = ledger.extended(["b", "c", "a"])
    assert grown.names == ("a", "b", "c")
    assert table(grown).dtypes.equals(table(ledger).dtypes)
    assert grown.labelled().tolist() == [1, 6]
    assert table(grown)["score"][:8].tolist() == list(range(8))
    assert table(grown)["score"][8:].isna().all()
    assert table(grown)["embedding_1"].notna().tolist() == [False, False, True] + [False] * 9
    assert table(grown)["image"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert ledger.extended(["a"]) is ledger
    with pytest.raises(InputError, match="'c' is given twice"):
        ledger.extended(["c", "c"])


def test_a_ledger_that_cannot_be_written_stays(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pool.parquet"
    Ledger.create(Grid(2, 2, 8, 8), ["a"], device=device).write(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meal_gpu.ledger.pq.write_table", full)
    with pytest.raises(RunError, match=r"pool.parquet: .*No space left on device; it is as it was before"):
        Ledger.create(Grid(2, 2, 8, 8), ["a", "b"], device=device).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
