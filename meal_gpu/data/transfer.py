"""Fetch one file over HTTP: resumed after a cut connection, checked before it counts.

`FILE.part` holds what has arrived and `FILE.part.json` which version of the remote file that was. A part
is continued only when the server says that the rest is of the same version; otherwise it starts over.
"""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meal_gpu.errors import ConfigError, DataError, UnavailableError

Transferred = Callable[[int, int | None], None]
"""Called with the bytes that are there, and how many there will be (None: the server does not say)."""

_BLOCK = 1 << 18
_TIMEOUT = 30.0
_ATTEMPTS = 5  # in a row without a single new byte


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: Transferred | None = None,
    pause: float = 1.0,
) -> Path:
    """Download `url` to `target`; an earlier part is continued.

    Args:
        url: http or https.
        target: the file to make.
        sha256: its expected SHA-256 in hexadecimal, or None.
        progress: called as bytes arrive.
        pause: seconds before the first new attempt after a cut connection; it doubles each time.

    Returns:
        `target`.

    Raises:
        ConfigError: `url` is another address.
        UnavailableError: the host cannot be reached or refuses; what arrived is kept and continued later.
        DataError: the file has another checksum; it is removed.
    """
    _require_http(url)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _length(part)
        try:
            _attempt(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise UnavailableError(f"{url}: the server answered {error.code} {error.reason}") from error
            cause: Exception = error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = error
        failures = 0 if _length(part) > before else failures + 1
        if failures >= _ATTEMPTS or (failures and not before):
            reason = getattr(cause, "reason", None) or cause
            raise UnavailableError(
                f"{url}: not reachable, or cut off after {_length(part)} bytes ({reason}); "
                f"run the command again to continue"
            ) from cause
        time.sleep(pause * 2**failures)
    _verify(part, url, sha256)
    part.replace(target)
    _note(part).unlink(missing_ok=True)
    return target


def _require_http(url: str) -> None:
    try:
        address = urllib.parse.urlsplit(url)
        usable = address.scheme in ("http", "https") and address.hostname and url.isascii()
    except ValueError:  # brackets around no address
        usable = False
    if not usable:
        raise ConfigError(f"{url!r} is no address; expected http://… or https://… in ASCII")


def _attempt(url: str, part: Path, progress: Transferred | None) -> None:
    """One request; returns when the file is complete."""
    known = _read_note(part)
    have = _length(part) if known.get("url") == url and known.get("version") else 0
    request = urllib.request.Request(url, headers={"User-Agent": "meal-gpu"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if not str(known["version"]).startswith("W/"):  # weak validators are not allowed here
            request.add_header("If-Range", str(known["version"]))
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies behind what is there: it is complete, or of another version.
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return
        part.unlink(missing_ok=True)
        raise ConnectionError("the remote file became shorter") from error
    with response:
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if have and not _continues(response, have, known, version):
            if response.status == 206:
                part.unlink(missing_ok=True)
                raise ConnectionError("the remote file changed")
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        _note(part).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        with part.open("ab" if have else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"cut off after {have} of {total} bytes")


def _continues(response: Any, have: int, known: dict[str, Any], version: str | None) -> bool:
    start = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    return response.status == 206 and start and version in (None, known["version"])


def _verify(part: Path, url: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise DataError(f"{url}: SHA-256 {found} found, {sha256.lower()} expected; the download was removed")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> dict[str, Any]:
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}
