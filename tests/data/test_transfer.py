import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meal_gpu.data.transfer import fetch
from meal_gpu.errors import ConfigError, DataError, UnavailableError

CONTENT = bytes(range(256)) * 4000  # 1 MB


class Server(http.server.ThreadingHTTPServer):
    """One file, served as badly as a test asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True
        self.honest_length = True
        self.cuts: list[int] = []  # bytes after which the next answers are cut off
        self.status: list[int] = []  # error codes of the next answers
        self.asked: list[str | None] = []  # Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if server.status:
            self.send_error(server.status.pop(0))
            return
        start = 0
        same = self.headers.get("If-Range", server.etag) == server.etag
        if wanted and server.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.honest_length:
            self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, target: Path, **options: object) -> bytes:
    content = fetch(server.url, target, pause=0.001, **options).read_bytes()
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    return content


def test_a_plain_download(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    content = get(
        server,
        tmp_path / "new" / "x.zip",
        sha256=hashlib.sha256(CONTENT).hexdigest().upper(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert content == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_cut_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 200_000]
    assert get(server, tmp_path / "x.zip") == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_continues(server: Server, tmp_path: Path) -> None:
    def stop(done: int, _: int | None) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path / "x.zip", progress=stop)
    have = (tmp_path / "x.zip.part").stat().st_size
    assert 0 < have < len(CONTENT)
    assert get(server, tmp_path / "x.zip") == CONTENT
    assert server.asked == [None, f"bytes={have}-"]


@pytest.mark.parametrize("etag", ['"two"', 'W/"two"'])
def test_a_changed_file_starts_over(server: Server, tmp_path: Path, etag: str) -> None:
    server.etag = 'W/"one"' if etag.startswith("W/") else '"one"'
    server.cuts = [300_000]
    server.content = CONTENT[::-1]

    def change(done: int, _: int | None) -> None:
        server.content, server.etag = CONTENT, etag

    assert get(server, tmp_path / "x.zip", progress=change) == CONTENT


@pytest.mark.parametrize("case", ["no ranges", "no version"])
def test_where_it_cannot_continue_it_starts_over(server: Server, tmp_path: Path, case: str) -> None:
    server.ranges = case != "no ranges"
    server.etag = '"one"' if case == "no ranges" else None
    server.cuts = [300_000]
    assert get(server, tmp_path / "x.zip") == CONTENT


def test_a_complete_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    (tmp_path / "x.zip.part.json").write_text(f'{{"url": "{server.url}", "version": "\\"one\\""}}')
    assert get(server, tmp_path / "x.zip") == CONTENT
    assert server.asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(CONTENT + b"more")
    (tmp_path / "x.zip.part.json").write_text(f'{{"url": "{server.url}", "version": "\\"one\\""}}')
    assert get(server, tmp_path / "x.zip") == CONTENT


def test_a_part_of_another_address_is_not_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x.zip.part").write_bytes(b"something else")
    (tmp_path / "x.zip.part.json").write_text('{"url": "http://other/", "version": "\\"one\\""}')
    assert get(server, tmp_path / "x.zip") == CONTENT
    assert server.asked == [None]


def test_a_server_that_says_no_length(server: Server, tmp_path: Path) -> None:
    server.honest_length = False
    totals: list[int | None] = []
    assert get(server, tmp_path / "x.zip", progress=lambda _, total: totals.append(total)) == CONTENT
    assert set(totals) == {None}


@pytest.mark.fault(
    "security", "a download with another checksum", "both checksums are named, the file is removed"
)
def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    found = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DataError, match=f"SHA-256 {found} found, {'0' * 64} expected"):
        fetch(server.url, tmp_path / "x.zip", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_tried_again(server: Server, tmp_path: Path, status: int) -> None:
    server.status = [status] * 9
    with pytest.raises(UnavailableError, match=f"the server answered {status}"):
        fetch(server.url, tmp_path / "x.zip")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000]
    server.status = []

    def busy(done: int, _: int | None) -> None:
        server.status = [503, 503] if not server.asked[1:] else []

    assert get(server, tmp_path / "x.zip", progress=busy) == CONTENT
    assert server.asked == [None] + ["bytes=300000-"] * 3


def test_it_gives_up_when_nothing_more_comes(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000] + [0] * 9
    with pytest.raises(UnavailableError, match=r"cut off after 300000 bytes.*run the command again"):
        fetch(server.url, tmp_path / "x.zip", pause=0.001)
    assert (tmp_path / "x.zip.part").stat().st_size == 300_000


def test_an_unreachable_host(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/x\.zip: not reachable"):
        fetch("http://127.0.0.1:1/x.zip", tmp_path / "x.zip")


@pytest.mark.parametrize(
    "url",
    ["nonsense", "file:///etc/passwd", "ftp://host/x.zip", "http://", "http://[x/", "http://host/ü.zip", ""],
)
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="is no address; expected http"):
        fetch(url, tmp_path / "x.zip")
    assert not list(tmp_path.iterdir())
