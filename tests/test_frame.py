"""pandas or cuDF: which is taken, and that both hold and write the same."""

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from meal_gpu import frame, memory
from meal_gpu.errors import UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.ledger import Ledger

CPU = torch.device("cpu")


def test_the_cpu_has_pandas() -> None:
    assert frame.library(CPU) is pd
    assert frame.nearest(CPU) == CPU


def test_a_gpu_without_cudf_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    wish = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnavailableError, match="torch sees no GPU; use device='cpu'"):
        Ledger.create(Grid(1, 1, 2, 2), ["a"], device="cuda")
    assert frame.nearest(wish) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "cudf", None)
    with pytest.raises(UnavailableError) as error:
        frame.library(wish)
    assert "needs cuDF" in str(error.value)
    assert "pip install 'meal-gpu[cuda13]'" in str(error.value)
    assert frame.nearest(wish) == CPU


def test_cudf_is_taken_where_it_is_and_shares_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[torch.device] = []
    wish, cudf = torch.device("cuda", 1), ModuleType("cudf")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "share_allocator", shared.append)
    monkeypatch.setitem(sys.modules, "cudf", cudf)
    assert frame.library(wish) is cudf
    assert frame.nearest(wish) == wish
    assert set(shared) == {wish}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float32])
def test_a_column_keeps_its_values_type_and_place(device: str, dtype: torch.dtype) -> None:
    if device == "cuda":
        pytest.importorskip("cudf")
    values = torch.tensor([3, 0, -2], device=device).to(dtype)
    if dtype.is_floating_point:
        values[1] = torch.nan
    series = frame.column(values)
    back = frame.tensor(series)
    assert (back.dtype, back.device, len(series)) == (dtype, values.device, 3)
    assert torch.equal(back.nan_to_num(7), values.nan_to_num(7))
    built = frame.build({"a": values, "b": values + 1}, values.device)
    assert list(built.columns) == ["a", "b"]
    assert frame.device_of(built) == values.device
    if device == "cuda":  # neither way copies, and NaN is a value
        assert back.data_ptr() == values.data_ptr()
        assert not series._column.has_nulls()


@pytest.mark.gpu
def test_both_libraries_write_one_file(tmp_path: Path) -> None:
    cudf = pytest.importorskip("cudf")
    for device, library in (("cpu", pd), ("cuda", cudf)):
        ledger = Ledger.create(Grid(2, 3, 5, 7), ["a", "b"], device=device)
        ledger.label(torch.tensor([3, 1]), step=2)
        ledger.set_scores(torch.rand(12, generator=torch.Generator().manual_seed(0)))
        ledger.set_embedding(torch.tensor([4, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        assert isinstance(ledger.frame, library.DataFrame)
        assert ledger.labelled().device.type == ledger.device.type == device
        ledger.write(tmp_path / device)
        Ledger.read(tmp_path / device, device=device).write(tmp_path / f"{device} again")
    first, *others = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert others == [first] * 3
