import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from meal_gpu.data.archive import extract, git_tree
from meal_gpu.errors import DataError

LIMIT = 1 << 20


def make(path: Path, members: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(info, content)
    return path


@pytest.mark.parametrize("prefix", ["", "repository-abc/"])
def test_takes_one_folder(tmp_path: Path, prefix: str) -> None:
    members = {
        "Data/a.txt": b"a",
        "Data/sub/b.txt": b"b",
        "Other/c.txt": b"c",
        "README": b"r",
        "deep/x/Data/d": b"",
    }
    archive = make(tmp_path / "x.zip", {prefix + name: content for name, content in members.items()})
    assert extract(archive, "Data", tmp_path / "out", limit=LIMIT) == 2
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"a.txt", "sub/b.txt"}


HOSTILE = {
    "parent": {"x/Data/../../evil": b""},
    "absolute": {"/Data/evil": b""},
    "backslash": {"x\\Data\\..\\..\\evil": b""},
    "drive": {"C:/Data/evil": b""},
    "outside the folder taken": {"x/Data/a": b"", "../evil": b""},
}


@pytest.mark.fault(
    "security",
    "a dataset archive with `../`, absolute, drive or backslash paths",
    "refused; nothing is written outside",
)
@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_member_that_leads_out_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    archive = make(tmp_path / "x.zip", members)
    with pytest.raises(DataError, match="leads out of the folder"):
        extract(archive, "Data", tmp_path / "out" / "here", limit=LIMIT)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.fault("security", "a dataset archive with links or devices", "refused")
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    archive = make(tmp_path / "x.zip", {"Data/l": b"/etc/passwd"}, {"Data/l": kind | 0o777})
    with pytest.raises(DataError, match="link or a device"):
        extract(archive, "Data", tmp_path / "out", limit=LIMIT)


@pytest.mark.fault(
    "security", "a dataset archive that unpacks to too much", "stopped at the limit that its entry states"
)
def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    archive = make(tmp_path / "x.zip", {"Data/a": bytes(3 * LIMIT)})
    with pytest.raises(DataError, match=f"more than {LIMIT} bytes"):
        extract(archive, "Data", tmp_path / "out", limit=LIMIT)
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*") if p.is_file()) <= LIMIT


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_found(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", kind) as zipped:
        zipped.writestr("Data/a", bytes(range(256)) * 40)
    content = bytearray(archive.read_bytes())
    content[60] ^= 0xFF
    content[62] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="damaged or no zip file"):
        extract(archive, "Data", tmp_path / "out", limit=LIMIT)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("a", 6, 1, r"member 'Data/a' is encrypted; unpack it by hand"),
        ("\xff", -22 - 1, 0xFF, "damaged or no zip file"),  # the name, in UTF-8
        ("a", -6, 0xFF, "damaged or no zip file"),  # where the directory begins
    ],
)
def test_a_damaged_directory_is_found(
    tmp_path: Path, name: str, place: int, value: int, message: str
) -> None:
    archive = make(tmp_path / "x.zip", {f"Data/{name}": b"x"})
    content = bytearray(archive.read_bytes())
    content[place] = value
    if message.startswith("member"):
        content[content.index(b"PK\x01\x02") + 8] = value
    archive.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        extract(archive, "Data", tmp_path / "out", limit=LIMIT)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "x.zip"
    text.write_text("<html>")
    with pytest.raises(DataError, match="no zip file"):
        extract(text, "Data", tmp_path / "out", limit=LIMIT)
    with pytest.raises(DataError, match="no folder Data/"):
        extract(make(tmp_path / "y.zip", {"a/b": b""}), "Data", tmp_path / "out", limit=LIMIT)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_tree_is_what_git_says(tmp_path: Path) -> None:
    # "a-b", "a.txt" and "a/" are sorted otherwise by git than by name.
    for name in ("a/x", "a-b/y", "a.txt", "a0", "Z/deep/er/z"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)

    def git(*command: str) -> str:
        base = [
            "git",
            "-c",
            "core.autocrlf=false",
            "--git-dir",
            str(tmp_path / "g"),
            "--work-tree",
            str(tmp_path / "files"),
        ]
        return subprocess.run([*base, *command], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    assert git_tree(tmp_path / "files") == git("write-tree")
