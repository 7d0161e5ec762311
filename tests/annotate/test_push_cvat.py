"""A query into CVAT: the real SDK of .venv-peers against a small server on this machine."""

import email
import email.policy
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import peer
import pytest
from PIL import Image
from typer.testing import CliRunner

from meal_gpu.annotate import cvat, push_cvat
from meal_gpu.annotate.asked import Asked, Box, Item
from meal_gpu.cli import app
from meal_gpu.errors import DataError, UnavailableError

TOKEN = "secret-token"
# Our own packages first: the peers' environment only adds the SDK and what it needs.
PUSH = """
import json, sys
from pathlib import Path
sys.path.append(sys.argv[1])
from meal_gpu.annotate import push_cvat
from meal_gpu.annotate.asked import Asked
options = json.loads(sys.argv[4])
try:
    print(push_cvat.push(Asked.read(Path(sys.argv[2])), Path(sys.argv[3]), poll_seconds=0.01, **options))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """Two patches of two frames that have the same name, in different folders."""
    items = []
    for patch, folder in ((0, "a"), (5, "b")):
        file = tmp_path / folder / "f.png"
        file.parent.mkdir()
        Image.fromarray(np.full((24, 32, 3), 40 * patch + 10, np.uint8)).save(file)
        items.append(Item(patch, f"{folder}/f.png", str(file), Box(0, 0, 16, 12), 0.5, 12.0, 23.0))
    query = Asked(
        tmp_path / "q", 3, "meal", 0, ("road", "car"), (24, 32), (2, 2), tuple(items), {"context": 2}
    )
    query.path.mkdir()
    query.write_into(query.path, [np.full((12, 16), i, np.uint8) for i in range(2)])
    return query


@pytest.mark.parametrize("out", [None, "new", "empty"])
def test_a_push_that_failed_is_repeated_by_the_same_command(
    out: str | None, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def push(query: Asked, folder: Path, **_: object) -> str:
        tries.append(folder)
        if len(tries) == 1:
            raise UnavailableError("nobody is there")
        return "task 7"

    monkeypatch.setattr(push_cvat, "push", push)
    (tmp_path / "empty").mkdir()
    folder = asked.path / "cvat" if out is None else tmp_path / out
    command = ["export", "--to", "cvat", "--query", str(asked.path)]
    command += [] if out is None else ["--out", str(folder)]
    sending = [*command, "--push", "http://127.0.0.1:9", "--token", TOKEN]
    assert CliRunner().invoke(app, sending).exit_code == 1
    again = CliRunner().invoke(app, sending)
    assert (again.exit_code, "pushed: task 7" in again.output) == (0, True)
    assert tries == [folder] * 2 and (folder / "annotations.xml").is_file()
    assert "not empty" in str(CliRunner().invoke(app, command).exception)


class Server(ThreadingHTTPServer):
    """As much of CVAT 2 as `push` meets; it keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.projects: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.fields: dict[str, str] = {}
        self.imported: dict[str, bytes] = {}
        self.formats: list[str] = []
        self.asked: list[str] = []
        self.failing = ""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, value: object = None, **headers: str) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for key, text in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(key.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        options = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.server.lock:
            self.server.asked.append(f"{self.command} {url.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"detail": "Invalid token."})
            else:
                self.route(self.command, url.path, options, body)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

    def page(self, results: list[dict[str, Any]]) -> None:
        self.answer(200, {"count": len(results), "next": None, "previous": None, "results": results})

    def route(self, method: str, path: str, options: dict[str, str], body: bytes) -> None:
        server = self.server
        if path == "/api/projects" and method == "GET":
            self.page([p for p in server.projects if options.get("name", p["name"]) == p["name"]])
        elif path == "/api/projects":
            server.projects.append(described(json.loads(body), 7 + len(server.projects)))
            self.answer(201, server.projects[-1])
        elif path == "/api/labels":
            (project,) = [p for p in server.projects if str(p["id"]) == options["project_id"]]
            self.page([{"name": label["name"]} for label in project["sent"]["labels"]])
        elif path == "/api/tasks" and method == "GET":
            self.page([t for t in server.tasks if str(t["project_id"]) == options["project_id"]])
        elif path == "/api/tasks":
            sent = json.loads(body)
            server.tasks.append(described(sent, 20 + len(server.tasks)) | {"project_id": sent["project_id"]})
            self.answer(201, server.tasks[-1])
        elif re.fullmatch(r"/api/tasks/\d+", path):
            task = next(t for t in server.tasks if path.endswith(f"/{t['id']}"))
            if method == "DELETE":
                server.tasks.remove(task)
                self.answer(204)
            else:
                self.answer(200, task)
        elif re.fullmatch(r"/api/tasks/\d+/data/?", path):
            self.data(body)
        elif path.startswith("/api/requests/"):
            failed = path.endswith(server.failing or "-")
            operation = {"type": "import:annotations", "target": "task"}
            state = {
                "status": "failed" if failed else "finished",
                "message": "no room\nleft" if failed else "",
            }
            date = "2026-01-01T00:00:00Z"
            self.answer(
                200, state | {"id": path.rsplit("/", 1)[-1], "operation": operation, "created_date": date}
            )
        elif re.match(r"/api/tasks/\d+/annotations", path):
            self.annotations(path, options, body)
        else:
            self.answer(404, {"detail": path})

    def data(self, body: bytes) -> None:
        # The body of each of these requests is a form, or empty.
        head = f"Content-Type: {self.headers.get('Content-Type', '')}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        for part in message.iter_parts():
            content = part.get_payload(decode=True)
            if file := part.get_filename():
                self.server.files[file.rsplit("/", 1)[-1]] = content  # Django keeps no folders either
            else:
                name = part.get_param("name", header="content-disposition")
                self.server.fields[name] = content.decode()
        if "Upload-Multiple" in self.headers:
            self.answer(200, {})
        else:
            self.answer(202, {"rq_id": "data"})

    def annotations(self, path: str, options: dict[str, str], body: bytes) -> None:
        if "Upload-Start" in self.headers or "Upload-Finish" in self.headers:
            self.server.formats.append(options["format"])
            self.answer(202, {"rq_id": "annotations"})
        elif self.command == "POST":
            where = f"{self.server.url}{path.rstrip('/')}/1"
            self.answer(201, None, Location=where, Upload_Filename="annotations.xml")
        else:
            self.server.imported["annotations.xml"] = body
            self.answer(204, None, Upload_Offset=str(len(body)))


def described(sent: dict[str, Any], number: int) -> dict[str, Any]:
    """A project or task as CVAT describes it, with what it was made from."""
    link = {"url": "http://x", "count": 0, "completed": 0, "validation": 0}
    links = dict.fromkeys(("labels", "tasks", "jobs"), link)
    return {"id": number, "name": sent["name"], "organization": None, "sent": sent} | links


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def push(asked: Asked, out: Path, url: str, **options: object) -> str:
    """What `push` returns or raises, in a process that has the real SDK."""
    packages = next((peer.ROOT / ".venv-peers" / "lib").glob("python*/site-packages"))
    given = json.dumps({"url": url, "token": TOKEN, "project": "streets"} | options)
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(packages), str(asked.path), str(out), given],
        capture_output=True, text=True, timeout=120, cwd=peer.ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip()


@peer.needs_peers
def test_one_task_of_a_new_project_has_crops_and_annotations(
    asked: Asked, server: Server, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert push(asked, out, server.url) == "20"
    (project,), (task,) = server.projects, server.tasks
    assert project["sent"] == {"name": "streets", "labels": cvat.labels(asked)}
    assert task["sent"] == {"name": "streets step 3", "project_id": project["id"]}
    assert list(server.files) == ["images.zip"]
    with zipfile.ZipFile(io.BytesIO(server.files["images.zip"])) as archive:
        assert archive.namelist() == [f"{item.name}.png" for item in asked.items]
        for name in archive.namelist():
            assert archive.read(name) == (out / "images" / name).read_bytes()
    assert server.fields["image_quality"] == "95"
    assert server.formats == ["CVAT 1.1", "CVAT 1.1"]
    assert server.imported["annotations.xml"] == (out / "annotations.xml").read_bytes()
    for answer in cvat.read(server.imported, asked):
        assert answer.labels is not None and answer.name in asked.by_name

    # The next step is a second task of the same project; the same step is refused.
    assert "has task 'streets step 3' (id 20) already" in push(asked, out, server.url)
    assert len(server.projects) == len(server.tasks) == 1


@peer.needs_peers
def test_a_task_that_fails_is_removed_again(asked: Asked, server: Server, tmp_path: Path) -> None:
    server.failing = "annotations"
    said = push(asked, tmp_path / "out", server.url)
    assert said.startswith("RunError") and "no room left" in said and "\n" not in said
    assert server.tasks == [] and "DELETE /api/tasks/20" in server.asked
    server.failing = ""
    assert push(asked, tmp_path / "out", server.url) == "20"
    assert len(server.projects) == 1


@peer.needs_peers
def test_a_project_must_have_the_labels_and_be_the_only_one(
    asked: Asked, server: Server, tmp_path: Path
) -> None:
    other = {"name": "streets", "labels": [{"name": "road"}]}
    server.projects.append(described(other, 1))
    said = push(asked, tmp_path / "out", server.url)
    assert said.startswith("RunError") and "no label 'car', 'patch'" in said
    server.projects.append(described(other, 2))
    assert "2 projects named 'streets'" in push(asked, tmp_path / "out", server.url)
    assert server.tasks == []


@peer.needs_peers
def test_a_server_that_refuses_or_is_not_there_is_an_error(
    asked: Asked, server: Server, tmp_path: Path
) -> None:
    said = push(asked, tmp_path / "out", server.url, token="other")
    assert said.startswith("RunError") and "status 401" in said and "Invalid token" in said
    assert "\n" not in said
    server.tasks.append({"id": 1, "project_id": 7, "jobs": "of another version"})
    said = push(asked, tmp_path / "out", server.url)
    assert said.startswith("RunError") and "SDK" in said and "\n" not in said
    said = push(asked, tmp_path / "out", "http://127.0.0.1:9")
    assert said.startswith("UnavailableError") and "cannot be reached" in said
    assert push(asked, tmp_path / "out", "ftp://x").startswith("RunError")


def test_crops_must_be_there(asked: Asked, tmp_path: Path) -> None:
    cvat.write(asked, tmp_path / "out")
    gone = tmp_path / "out" / "images" / f"{asked.items[1].name}.png"
    gone.unlink()
    with pytest.raises(DataError, match=re.escape(str(gone))):
        push_cvat._pack(asked, tmp_path / "out", tmp_path / "images.zip")


def test_without_the_sdk_it_is_named(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(UnavailableError, match=r"pip install 'meal-gpu\[cvat\]'"):
        push_cvat.push(asked, tmp_path / "out", url="http://x", token=TOKEN, project="p")
    assert not (tmp_path / "out").exists()
