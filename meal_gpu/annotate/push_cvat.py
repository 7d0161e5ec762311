"""A query into a CVAT server, through its SDK."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meal_gpu.annotate import cvat
from meal_gpu.annotate.asked import Asked
from meal_gpu.errors import DataError, RunError, UnavailableError

_QUALITY = 95  # of the JPEG pictures that annotators see; CVAT's SDK asks for 70


def push(asked: Asked, out: Path, *, url: str, token: str, project: str, poll_seconds: float = 2) -> int:
    """Make one task of a query, "PROJECT step N", in the project of that name, created where there is none.

    The crops travel in one zip file, because CVAT keeps no folders of single files. A task that cannot be
    filled is removed again, so that a push that failed may be repeated.

    Args:
        out: a folder that `cvat.write` filled for the same query, or that it fills now.
        token: a personal access token; goes nowhere but to `url`.
        poll_seconds: between two questions whether the server is done.

    Returns:
        The id of the task.

    Raises:
        UnavailableError: the SDK is not installed or too old, or the server cannot be reached.
        RunError: the server refuses something, has the task already, or the project lacks labels.
        DataError: a frame or prediction cannot be read.
    """
    try:
        from cvat_sdk import Config
        from cvat_sdk.core.client import AccessTokenCredentials, Client
    except ImportError as error:
        raise UnavailableError(
            f"CVAT's SDK from 2.80 on is not installed ({error}): pip install 'meal-gpu[cvat]'"
        ) from error
    annotations = out / "annotations.xml"
    if not annotations.is_file():
        out.mkdir(parents=True, exist_ok=True)
        cvat.write(asked, out)
    with _explained(url), TemporaryDirectory() as scratch:
        images = Path(scratch) / "images.zip"
        _pack(asked, out, images)
        config = Config(status_check_period=poll_seconds)
        with Client(url, config=config, check_server_version=False) as client:
            client.login(AccessTokenCredentials(token))
            home = _project(client, project, asked)
            name = f"{project} step {asked.step}"
            if there := [task.id for task in home.get_tasks() if task.name == name]:
                raise RunError(
                    f"{url}: CVAT has task {name!r} (id {there[0]}) already; delete it to push again"
                )
            task = client.tasks.create({"name": name, "project_id": home.id})
            try:
                task.upload_data([images], params={"image_quality": _QUALITY})
                task.import_annotations("CVAT 1.1", annotations)
            except BaseException:
                with suppress(Exception):  # what went wrong before is what the user must hear of
                    task.remove()
                raise
            return int(task.id)


def _pack(asked: Asked, out: Path, path: Path) -> None:
    """All crops in a zip file, under their names with folders. Raises DataError where one is missing."""
    with zipfile.ZipFile(path, "w") as archive:
        for item in asked.items:
            crop = out / "images" / f"{item.name}.png"
            if not crop.is_file():
                raise DataError(f"{crop}: no such image; export the query into a new folder and push that")
            archive.write(crop, f"{item.name}.png")


def _project(client: Any, name: str, asked: Asked) -> Any:
    """The project, found or created. Raises RunError where there are several or it lacks labels."""
    found = [entry for entry in client.projects.list(name=name) if entry.name == name]
    wanted = cvat.labels(asked)
    if not found:
        return client.projects.create({"name": name, "labels": wanted})
    if len(found) > 1:
        raise RunError(f"CVAT has {len(found)} projects named {name!r}; rename all but one")
    present = {label.name for label in found[0].get_labels()}
    if missing := [label["name"] for label in wanted if label["name"] not in present]:
        raise RunError(
            f"project {name!r} of CVAT has no label {', '.join(map(repr, missing))}; add it there or name "
            "a new project"
        )
    return found[0]


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Raises what goes wrong in the SDK as errors of this package."""
    import urllib3
    from cvat_sdk.api_client.exceptions import ApiException, OpenApiException
    from cvat_sdk.core.exceptions import CvatSdkException

    try:
        yield
    except ApiException as error:
        body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else error.body
        said = f"{error.reason or ''} {body or ''}".strip()[:500].replace("\n", " ")
        raise RunError(f"{url}: CVAT refused with status {error.status}: {said}") from error
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"{url}: CVAT cannot be reached: {error}") from error
    except (CvatSdkException, OpenApiException) as error:
        raise RunError(f"{url}: CVAT's SDK failed: {error}".replace("\n", " ")) from error
    except (TypeError, KeyError, AssertionError, JSONDecodeError) as error:
        said = f"{url}: CVAT's SDK does not understand the server: {error!r}; install the SDK of its version"
        raise RunError(said.replace("\n", " ")) from error
