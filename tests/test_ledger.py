"""The table of the pool: who is labelled since which step."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meal_gpu.errors import InputError, RunError
from meal_gpu.grid import Grid
from meal_gpu.ledger import UNLABELLED, Ledger

GRID = Grid(2, 3, 5, 7)
NAMES = ("aachen/a.png", "ulm/ü <b>.png")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger.create(GRID, NAMES)


def ids(*patches: int) -> torch.Tensor:
    return torch.tensor(patches, dtype=torch.int64)


def test_a_new_ledger(ledger: Ledger) -> None:
    assert len(ledger) == 12
    assert {column: str(kind) for column, kind in ledger.frame.dtypes.items()} == {
        "patch": "int64", "image": "int32", "row": "int16", "column": "int16", "step": "int16",
        "score": "float32",
    }  # fmt: skip
    assert ledger.frame["patch"].tolist() == list(range(12))
    assert ledger.frame["image"].tolist() == 6 * [0] + 6 * [1]
    assert ledger.frame["row"].tolist() == 2 * (3 * [0] + 3 * [1])
    assert ledger.frame["column"].tolist() == 4 * [0, 1, 2]
    assert (ledger.frame["step"] == UNLABELLED).all()
    assert ledger.frame["score"].isna().all()
    assert len(ledger.labelled()) == 0
    assert torch.equal(ledger.unlabelled(), torch.arange(12))


def test_labelling(ledger: Ledger) -> None:
    ledger.label(ids(7, 2), step=0)
    ledger.label(ids(11), step=3)
    ledger.label(ids(), step=4)
    assert torch.equal(ledger.labelled(), ids(2, 7, 11))
    assert torch.equal(ledger.unlabelled(), ids(0, 1, 3, 4, 5, 6, 8, 9, 10))
    assert ledger.frame["step"].tolist() == [-1, -1, 0, -1, -1, -1, -1, 0, -1, -1, -1, 3]
    assert str(ledger.frame["step"].dtype) == "int16"


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
    before = ledger.frame.copy()
    with pytest.raises(InputError) as error:
        ledger.label(ids(*patches), step=6)
    assert all(part in str(error.value) for part in told)
    pd.testing.assert_frame_equal(ledger.frame, before)


@given(st.lists(st.sets(st.integers(0, 11), max_size=4), max_size=6))
def test_labelled_and_unlabelled_partition_the_pool(queries: list[set[int]]) -> None:
    ledger = Ledger.create(GRID, NAMES)
    taken: set[int] = set()
    for step, query in enumerate(queries):
        ledger.label(ids(*(query - taken)), step)
        taken |= query
        assert ledger.labelled().tolist() == sorted(taken)
        assert ledger.unlabelled().tolist() == sorted(set(range(12)) - taken)


def test_scores_and_embedding_are_by_patch_id(ledger: Ledger) -> None:
    ledger.set_scores(torch.arange(12, dtype=torch.float64) / 8)
    ledger.set_embedding(ids(9, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert ledger.frame["score"].tolist() == [k / 8 for k in range(12)]
    assert ledger.frame.loc[9, ["embedding_0", "embedding_1"]].tolist() == [1.0, 2.0]
    assert ledger.frame.loc[4, ["embedding_0", "embedding_1"]].tolist() == [3.0, 4.0]
    assert ledger.frame["embedding_0"].notna().sum() == 2
    # the next step's candidates replace these
    ledger.set_embedding(ids(0), torch.tensor([[5.0, 6.0]]))
    assert ledger.frame["embedding_1"].dropna().to_dict() == {0: 6.0}
    assert str(ledger.frame["embedding_0"].dtype) == "float32"


def test_parquet_round_trip(ledger: Ledger, tmp_path: Path) -> None:
    ledger.label(ids(1, 8), step=2)
    ledger.set_scores(torch.rand(12, generator=torch.Generator().manual_seed(0)))
    ledger.set_embedding(ids(3, 5), torch.ones(2, 2))
    ledger.write(tmp_path / "ledger.parquet")
    again = Ledger.read(tmp_path / "ledger.parquet")
    pd.testing.assert_frame_equal(again.frame, ledger.frame)
    assert (again.grid, again.names) == (GRID, NAMES)
    again.label(ids(0), step=3)
    assert torch.equal(again.labelled(), ids(0, 1, 8))


def test_one_ledger_is_one_file(ledger: Ledger, tmp_path: Path) -> None:
    ledger.write(tmp_path / "a")
    ledger.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but not really"])
def test_a_damaged_or_missing_file_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"ledger\.parquet: not a ledger"):
        Ledger.read(path)


def test_a_truncated_ledger_is_named(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    ledger.write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"ledger\.parquet: not a ledger"):
        Ledger.read(path)
