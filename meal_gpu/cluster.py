"""Dask: work that many processes, on many machines, share."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from meal_gpu.errors import ConfigError, MealGpuError, RunError, UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")
Run = Callable[[Callable[[Item], Result], Sequence[Item]], Iterator[tuple[int, Result]]]
"""Calls a function for every item, and yields (number of the item, result) as they come."""

_PATIENCE = "30s"  # for a scheduler to answer
_DASHBOARD = "127.0.0.1:0"  # a free port, of this machine alone


@contextmanager
def connected(address: str) -> Iterator[Run[Any, Any]]:
    """Work on a cluster: "local:N" processes, "local-cuda" (one a GPU), or a scheduler's "tcp://host:port".

    What a worker that is lost was working on goes to another one. Functions and items are pickled.

    Raises:
        ConfigError: an address of no such form.
        UnavailableError: dask, or dask-cuda, is missing, or no scheduler answers.
    """
    kind, _, number = address.partition(":")
    counted = kind == "local" and number.isdecimal() and int(number)
    if not ("://" in address or address == "local-cuda" or counted):
        raise ConfigError(
            f"cluster is {address!r}; expected local:N with N processes, local-cuda, or tcp://host:port"
        )
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise UnavailableError(f"a cluster needs dask: pip install 'meal-gpu[dask]' ({error})") from error
    if "://" in address:
        made = None
    elif address == "local-cuda":
        made = _of_gpus()
    else:
        # What a worker holds is known (footprint.py); dask would pause it for memory that others use
        made = distributed.LocalCluster(
            n_workers=int(number), threads_per_worker=1, memory_limit=0, dashboard_address=_DASHBOARD
        )
    try:
        client = distributed.Client(address if made is None else made, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"{address}: no scheduler answers ({error}); start one: dask scheduler"
        ) from error
    try:
        yield lambda function, items: _results(client, function, items, address)
    finally:
        client.close()
        if made is not None:
            made.close()


def _of_gpus() -> Any:
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise UnavailableError(
            f"local-cuda needs dask-cuda: pip install dask-cuda ({error}); or name local:N"
        ) from error
    return LocalCUDACluster(dashboard_address=_DASHBOARD)


def _results(
    client: Any, function: Callable[[Item], Result], items: Sequence[Item], address: str
) -> Iterator[tuple[int, Result]]:
    distributed: Any = import_module("distributed")
    futures = client.map(function, items, pure=False)
    number = {future.key: i for i, future in enumerate(futures)}
    future: Any = None
    try:
        for future in distributed.as_completed(futures):
            yield number[future.key], future.result()
    except distributed.KilledWorker as error:
        raise RunError(
            f"{address}: every worker died of the same part ({error}); its log says of what, most often of "
            "memory. What is done is kept: the same command continues"
        ) from error
    except MealGpuError:
        raise
    except (CancelledError, OSError, TimeoutError) as error:
        if future is not None and future.status == "error":  # the work's own, and not the connection's
            raise RunError(
                f"{address}: a worker raised {type(error).__name__}: {error}; every machine must reach the "
                "files that the model and the images are read from"
            ) from error
        raise RunError(
            f"{address}: the scheduler is gone ({type(error).__name__}); start it again. What is done is "
            "kept: the same command continues"
        ) from error
    finally:
        client.cancel(futures, force=True)
