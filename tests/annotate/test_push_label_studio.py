"""A query pushed by Label Studio's real SDK, from .venv-peers to a server that records what it is sent."""

import base64
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import peer
import pytest
from PIL import Image
from test_coco import asked_of

from meal_gpu.annotate import label_studio
from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.push_label_studio import push
from meal_gpu.errors import UnavailableError

# the SDK's packages come after ours: its own OpenCV and pandas are never imported
PUSH = """
import json
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
from meal_gpu.annotate.asked import Asked
from meal_gpu.annotate.push_label_studio import push
from meal_gpu.errors import MealGpuError
for line in sys.stdin:
    url, folder, predictions = json.loads(line)
    folder = Path(folder)
    try:
        print(push(Asked.read(folder / "query"), folder / "out", url=url, token="s3cret", project="streets",
                   predictions=predictions), flush=True)
    except MealGpuError as error:
        print(type(error).__name__, error, flush=True)
"""


class Studio(ThreadingHTTPServer):
    """As much of Label Studio's API as a push meets; `refuse` is the (status, body) of every import."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuse: tuple[int, Any] | None = None


class Handler(BaseHTTPRequestHandler):
    server: Studio

    def do_GET(self) -> None:
        studio, address = self.server, urlsplit(self.path)
        studio.seen.append(f"GET {address.path}")
        studio.tokens.add(self.headers["Authorization"])
        match address.path.strip("/").split("/"):
            case ["api", "projects"]:
                title = parse_qs(address.query)["title"][0]
                self.answer(200, self.page("results", [p for p in studio.projects if title in p["title"]]))
            case ["api", "projects", number]:
                self.answer(200, studio.projects[int(number) - 1])
            case ["api", "tasks"]:
                self.answer(200, self.page("tasks", studio.tasks))
            case _:
                self.answer(404, {"detail": "Not found."})

    def page(self, key: str, entries: list[Any]) -> dict[str, Any]:
        first = parse_qs(urlsplit(self.path).query).get("page", ["1"]) == ["1"]
        more = {"count": len(entries), "next": None, "previous": None}
        more |= {"total": len(entries), "total_annotations": 0, "total_predictions": 0}
        return {**more, key: entries if first else []}

    def do_POST(self) -> None:
        studio, path = self.server, urlsplit(self.path).path
        studio.seen.append(f"POST {path}")
        studio.tokens.add(self.headers["Authorization"])
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match path.strip("/").split("/"):
            case ["api", "projects"]:
                studio.projects.append({"id": len(studio.projects) + 1, **body})
                self.answer(201, studio.projects[-1])
            case ["api", "projects", "1", "import"] if studio.refuse:
                self.answer(*studio.refuse)
            case ["api", "projects", "1", "import"]:
                studio.tasks += [{"id": len(studio.tasks) + i, **task} for i, task in enumerate(body, 1)]
                self.answer(201, {"task_count": len(body), "task_ids": [1]})
            case _:
                self.answer(404, {"detail": "Not found."})

    def answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def studio() -> Iterator[Studio]:
    server = Studio()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return asked_of(tmp_path)


@pytest.fixture(scope="module")
def pushed() -> Iterator[Callable[..., str]]:
    """Pushes the query of a folder to a URL; what came of it; in one process, for the SDK loads slowly."""
    packages = next((peer.ROOT / ".venv-peers" / "lib").glob("python3*/site-packages"))
    command = [sys.executable, "-c", PUSH, str(packages)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=peer.ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def one(folder: Path, url: str, *, predictions: bool = True) -> str:
            stdin.write(json.dumps([url, str(folder), predictions]) + "\n")
            stdin.flush()
            return stdout.readline().strip()

        yield one
        stdin.close()
        assert process.wait(30) == 0


@peer.needs_peers
def test_a_project_is_made_and_filled_once(
    studio: Studio, asked: Asked, tmp_path: Path, pushed: Callable[..., str]
) -> None:
    assert pushed(tmp_path, studio.url) == "3"
    assert studio.tokens == {"Token s3cret"}
    (project,) = studio.projects
    assert project["title"] == "streets"
    assert project["label_config"] == (tmp_path / "out" / "config.xml").read_text("utf-8")
    crops = {item.name: (item, pixels) for item, _, pixels in asked.crops()}
    for task in studio.tasks:
        item, pixels = crops.pop(task["data"]["patch"])
        kind, _, content = task["data"]["image"].partition(",")
        assert kind == "data:image/png;base64"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), pixels)
        expected = label_studio.task(item, asked, task["data"]["image"])
        assert {key: task[key] for key in expected} == expected
    assert crops == {}

    kept = studio.tasks.pop()
    assert pushed(tmp_path, studio.url) == "1"
    assert [task["data"]["patch"] for task in studio.tasks].count(kept["data"]["patch"]) == 1
    assert pushed(tmp_path, studio.url) == "0"
    assert len(studio.projects) == 1
    assert len(studio.tasks) == 3

    # Of another pool, whose frames have the same names
    frame = Path(asked.items[0].file)
    before = frame.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(frame))).save(frame)
    said = pushed(tmp_path, studio.url)
    assert said.startswith(f"RunError the project has another image by the name {asked.items[0].name}: ")
    assert len(studio.tasks) == 3
    frame.write_bytes(before)

    studio.projects[0]["label_config"] = "<View/>"
    assert pushed(tmp_path, studio.url).startswith("RunError project 'streets' of Label Studio has another")
    studio.projects.append(studio.projects[0])
    assert pushed(tmp_path, studio.url).startswith("RunError Label Studio has 2 projects named 'streets'")


@peer.needs_peers
def test_a_server_that_takes_no_brush_masks_may_be_given_none(
    studio: Studio, asked: Asked, tmp_path: Path, pushed: Callable[..., str]
) -> None:
    studio.refuse = 400, {"predictions": ["Task 0, prediction 0: Region 1: Invalid value for control"]}
    said = pushed(tmp_path, studio.url)
    assert said.startswith(f"RunError {studio.url}: Label Studio refused with status 400 after 0 tasks: ")
    assert said.endswith("push with --no-predictions")
    assert "s3cret" not in said
    studio.refuse = None
    assert pushed(tmp_path, studio.url, predictions=False) == "3"
    assert not any("predictions" in task for task in studio.tasks)


@peer.needs_peers
def test_a_server_that_is_not_there_or_refuses_is_said(
    studio: Studio, asked: Asked, tmp_path: Path, pushed: Callable[..., str]
) -> None:
    studio.refuse = 401, {"detail": "Invalid token."}
    said = pushed(tmp_path, studio.url)
    assert "status 401" in said
    assert "Invalid token." in said
    said = pushed(tmp_path, "http://127.0.0.1:9")
    assert said.startswith(
        "UnavailableError http://127.0.0.1:9: Label Studio cannot be reached after 0 tasks"
    )
    assert pushed(tmp_path, "http://[").startswith("ConfigError url 'http://[' is no address of a server")


def test_the_sdk_that_is_not_installed_is_named(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "label_studio_sdk", None)
    with pytest.raises(UnavailableError, match=r"pip install 'meal-gpu\[label-studio\]'"):
        push(asked, tmp_path / "out", url="http://127.0.0.1:9", token="t", project="p")
