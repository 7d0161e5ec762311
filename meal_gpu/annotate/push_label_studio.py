"""A query into a Label Studio server, through its SDK."""

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from meal_gpu.annotate import label_studio
from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.pictures import Pixels
from meal_gpu.errors import ConfigError, RunError, UnavailableError

_PNG = "data:image/png;base64,"
_REQUEST_BYTES = 16 << 20  # the server takes 200 MB; a smaller request fails sooner where a proxy is stricter


def push(asked: Asked, out: Path, *, url: str, token: str, project: str, predictions: bool = True) -> int:
    """Make tasks of a query in the project of that title, which is created where there is none.

    The SDK uploads no files, so each crop travels within its task, as a data: URI. A crop that the project
    already has is left alone: a push that broke off may be repeated.

    Servers may check predictions, and the check of SDK 2.0 takes hardly any brush mask, those of
    Label Studio's own encoder included; where a server refuses them for that, push with `predictions` off
    (--no-predictions).

    Args:
        out: where config.xml is written, for the record.
        token: of an account; goes nowhere but to `url`.

    Returns:
        How many tasks were made.

    Raises:
        ConfigError: `url` is none.
        UnavailableError: the SDK is not installed, or the server cannot be reached.
        RunError: the server refuses something, or the project has another labelling config.
        DataError: a frame or prediction cannot be read.
    """
    try:
        import httpx
        from label_studio_sdk import LabelStudio
        from label_studio_sdk.core.api_error import ApiError
    except ImportError as error:
        raise UnavailableError(
            f"Label Studio's SDK is not installed ({error}): pip install 'meal-gpu[label-studio]'"
        ) from error
    if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/\S*)?|https?://\[[0-9a-fA-F:.]+\](:\d+)?(/\S*)?", url):
        raise ConfigError(f"url {url!r} is no address of a server, such as http://localhost:8080")
    config = label_studio.config(asked)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.xml").write_text(config, encoding="utf-8")
    made = 0
    try:
        client = LabelStudio(base_url=url, api_key=token)
        number = _project(client, project, config)
        tasks = (entry.data or {} for entry in client.tasks.list(project=number, page_size=100))
        there = {data["patch"]: data.get("image") for data in tasks if data.get("patch") in asked.by_name}
        for batch in _batches(asked, there, predictions=predictions):
            client.projects.import_tasks(number, request=batch, return_task_ids=True)
            made += len(batch)
    except ApiError as error:
        refused = str(error.body)[:500].replace("\n", " ")
        hint = "; it may take no brush masks: push with --no-predictions" if "rediction" in refused else ""
        raise RunError(
            f"{url}: Label Studio refused with status {error.status_code} after {made} tasks: {refused}{hint}"
        ) from error
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{url}: Label Studio cannot be reached after {made} tasks: {error}"
        ) from error
    return made


def _project(client: Any, title: str, config: str) -> int:
    """The id of the project, found or created. Raises RunError where there is one for something else."""
    found = [entry for entry in client.projects.list(title=title) if entry.title == title]
    if not found:
        return int(client.projects.create(title=title, label_config=config).id)
    if len(found) > 1:
        raise RunError(f"Label Studio has {len(found)} projects named {title!r}; rename all but one")
    number = int(found[0].id)
    theirs = client.projects.get(number).label_config or ""
    if not _same(theirs, config):
        raise RunError(
            f"project {title!r} of Label Studio has another labelling config, for other classes; "
            "name a new project"
        )
    return number


def _same(theirs: str, ours: str) -> bool:
    try:
        return ElementTree.canonicalize(theirs, strip_text=True) == ElementTree.canonicalize(
            ours, strip_text=True
        )
    except ElementTree.ParseError:
        return False


def _batches(asked: Asked, there: dict[str, Any], *, predictions: bool) -> Iterator[list[dict[str, Any]]]:
    """The tasks that are not there yet, in requests of some megabytes.

    Raises RunError where another image is there by the name of a crop.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for item, _, pixels in asked.crops():
        if item.name in there:
            if not _shows(there[item.name], pixels):
                raise RunError(
                    f"the project has another image by the name {item.name}: of another pool, or "
                    "with another --context; name another --project"
                )
            continue
        image = _uri(pixels)
        entry = label_studio.task(item, asked, image)
        if not predictions:
            del entry["predictions"]
        else:
            # a byte of a mask takes up to five characters: its digits, a comma and a space
            size += sum(5 * len(r["value"].get("rle", ())) for r in entry["predictions"][0]["result"])
        size += len(image)
        batch.append(entry)
        if size > _REQUEST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shows(image: Any, pixels: Pixels) -> bool:
    """Whether a task's image is this one; one that is not in the task is taken for it."""
    if not isinstance(image, str) or not image.startswith(_PNG):
        return True
    try:
        with Image.open(BytesIO(base64.b64decode(image.removeprefix(_PNG))), formats=("PNG",)) as found:
            return np.array_equal(np.asarray(found), pixels)
    except (OSError, SyntaxError, ValueError):
        return False


def _uri(pixels: Pixels) -> str:
    png = BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    return _PNG + base64.b64encode(png.getvalue()).decode("ascii")
