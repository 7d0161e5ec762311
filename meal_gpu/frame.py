"""The one place that knows pandas from cuDF: torch tensors go in and out of frames on the CPU or on a GPU."""

from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import pandas as pd
import pyarrow as pa
import torch
from torch.utils.dlpack import from_dlpack

from meal_gpu import memory
from meal_gpu.errors import UnavailableError

if TYPE_CHECKING:
    import cudf

Frame: TypeAlias = "pd.DataFrame | cudf.DataFrame"
Series: TypeAlias = "pd.Series | cudf.Series"


def library(device: torch.device) -> ModuleType:
    """pandas for the CPU, cuDF for a GPU.

    Raises:
        UnavailableError: there is no such GPU, or no cuDF; the message says what to install.
    """
    if device.type == "cpu":
        return pd
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UnavailableError(f"a ledger on {device} was asked for, but torch sees no GPU; use device='cpu'")
    try:
        import cudf
    except ImportError as error:
        raise UnavailableError(
            f"a ledger on {device} needs cuDF ({error}): pip install 'meal-gpu[cuda13]', or use device='cpu'"
        ) from error
    memory.share_allocator(device)
    found: ModuleType = cudf
    return found


def nearest(device: torch.device) -> torch.device:
    """`device` where its library is installed, else the CPU."""
    try:
        library(device)
    except UnavailableError:
        return torch.device("cpu")
    return device


def build(columns: dict[str, torch.Tensor], device: torch.device) -> Frame:
    """A frame on `device` of equally long 1-d tensors, in their order and dtypes."""
    make = library(device).DataFrame  # first, for its error where there is no such device
    return make({name: column(values.to(device)) for name, values in columns.items()})


def column(values: torch.Tensor) -> Series:
    """[n] of any numeric dtype -> a series that shares its memory; NaN stays NaN and becomes no null."""
    series = library(values.device).Series
    return series(values.numpy(), copy=False) if series is pd.Series else series(values, nan_as_null=False)


def tensor(series: Series) -> torch.Tensor:
    """A series without nulls -> [n] where it lies, only to be read: cuDF's own memory, a copy of pandas'."""
    if isinstance(series, pd.Series):
        # pandas lends out read-only arrays, which torch cannot express
        return torch.from_numpy(series.to_numpy(copy=True))
    return from_dlpack(series.values)


def device_of(frame: Frame) -> torch.device:
    """Where the columns of a frame (at least one) lie."""
    if isinstance(frame, pd.DataFrame):
        return torch.device("cpu")
    return tensor(frame[frame.columns[0]]).device


def to_arrow(frame: Frame) -> pa.Table:
    """A table in host memory; NaN becomes null, as pandas has it, from either library."""
    if not isinstance(frame, pd.DataFrame):
        frame = pd.DataFrame({name: tensor(frame[name]).cpu().numpy() for name in frame.columns})
    return pa.Table.from_pandas(frame, preserve_index=False)


def from_arrow(table: pa.Table, device: torch.device) -> Frame:
    """A frame on `device`; null becomes NaN. On a GPU every column must be numeric."""
    frame: pd.DataFrame = table.to_pandas()
    if library(device) is pd:
        return frame
    return build({str(name): tensor(frame[name]) for name in frame.columns}, device)
