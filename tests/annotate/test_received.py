import errno
import io
import os
import warnings
import zipfile
from pathlib import Path

import pytest

from meal_gpu.annotate import received
from meal_gpu.errors import DataError

LIMIT = 1 << 20


def zipped(
    path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore")  # zipfile warns of names that come twice
        for name, content in members:
            file.writestr(name, content)
    return path


def test_folder_archive_and_file_hold_the_same(tmp_path: Path) -> None:
    members = {"a.png": b"1", "deep/er/b.png": b"22", "empty.txt": b""}
    folder = tmp_path / "folder"
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(folder / "a.png")
    archive = zipped(tmp_path / "x.zip", *members.items(), ("deep/", b""))
    unnamed = tmp_path / "download"
    unnamed.write_bytes(archive.read_bytes())
    assert received.files(folder, limit=LIMIT) == members | {"link.png": b"1"}
    assert received.files(archive, limit=LIMIT) == members
    assert received.files(unnamed, limit=LIMIT) == members
    assert received.files(folder / "a.png", limit=LIMIT) == {"a.png": b"1"}
    assert len(list(tmp_path.iterdir())) == 3  # nothing was unpacked


def test_archives_of_windows_and_macos(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "x.zip", ("a\\b.png", b"1"), ("__MACOSX/a/._b.png", b"2"), ("._c.png", b"3"),
        ("inner.zip", b"PK\3\4 not opened"),
    )  # fmt: skip
    assert received.files(archive, limit=LIMIT) == {"a/b.png": b"1", "inner.zip": b"PK\3\4 not opened"}


def test_names_of_archives_that_do_not_say_that_they_are_in_utf8(tmp_path: Path) -> None:
    """As Info-ZIP's `zip -r` writes them."""
    archive = zipped(tmp_path / "x.zip", ("stra\u00dfe/\u00e4.png", b"1"), ("plain.png", b"2"))
    content = bytearray(archive.read_bytes())
    for magic, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(magic)
        assert content[at + place + 1] == 0x08  # bit 11
        content[at + place + 1] = 0
    archive.write_bytes(bytes(content))
    assert received.files(archive, limit=LIMIT) == {"straße/ä.png": b"1", "plain.png": b"2"}


@pytest.mark.fault(
    "security",
    "annotations whose names lead out of their folder",
    "refused; archives are never unpacked to the disk",
)
@pytest.mark.parametrize(
    "name",
    ["../a.png", "/a.png", "a/../../b.png", "..\\a.png", "\\a.png", "C:\\a.png", "c:a.png", "a.png\0.txt"],
)
def test_names_that_lead_out_are_not_trusted(name: str, tmp_path: Path) -> None:
    stand_in = "q" * len(name)  # zipfile itself would not write some of these
    archive = zipped(tmp_path / "x.zip", (stand_in, b"1"))
    archive.write_bytes(archive.read_bytes().replace(stand_in.encode(), name.encode()))
    with pytest.raises(DataError, match=r"x\.zip: .*leads out of the folder; not trusted"):
        received.files(archive, limit=LIMIT)


@pytest.mark.fault("security", "annotations with links, devices or encrypted members", "refused, named")
def test_links_devices_and_secrets_of_archives(tmp_path: Path) -> None:
    for mode in (0o120777, 0o020666):
        link = zipfile.ZipInfo("a.png")
        link.external_attr = mode << 16
        with pytest.raises(DataError, match=r"'a\.png' is a link or a device"):
            received.files(zipped(tmp_path / "x.zip", (link, b"/etc/passwd")), limit=LIMIT)
    archive = zipped(tmp_path / "x.zip", ("a.png", b"1"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"'a\.png' is encrypted; export it without a password"):
        received.files(archive, limit=LIMIT)


@pytest.mark.parametrize("second", ["a/b.png", "a//b.png", "./a/b.png", "a\\b.png"])
def test_a_name_that_comes_twice(second: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 'a/b\.png' twice"):
        received.files(zipped(tmp_path / "x.zip", ("a/b.png", b"1"), (second, b"2")), limit=LIMIT)


@pytest.mark.fault(
    "security",
    "an annotation archive that unpacks to too much",
    "stopped as the bytes come out, whatever its header says",
)
def test_bytes_are_counted_as_they_come_out(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", ("a.png", b"\0" * LIMIT), ("b.png", b"1"))
    with pytest.raises(DataError, match=rf"x\.zip: more than {LIMIT} bytes come out of it"):
        received.files(archive, limit=LIMIT)
    assert len(received.files(archive, limit=LIMIT + 1)) == 2
    # a size that says less than what comes out
    content = archive.read_bytes().replace(LIMIT.to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip"):
        received.files(archive, limit=LIMIT)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_bytes(b"\0" * 600)
    for path, limit in ((folder, 1000), (folder / "a", 599)):
        with pytest.raises(DataError, match=f"more than {limit} bytes"):
            received.files(path, limit=limit)


@pytest.mark.fault(
    "security", "an annotation archive of too many files", "refused, with the number and the limit"
)
def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "MEMBERS", 3)
    archive = zipped(tmp_path / "x.zip", *((name, b"") for name in "abcd"))
    with pytest.raises(DataError, match=r"x\.zip: more than 3 files"):
        received.files(archive, limit=LIMIT)
    (tmp_path / "folder").mkdir()
    for name in "abcd":
        (tmp_path / "folder" / name).touch()
    with pytest.raises(DataError, match="folder: more than 3 files"):
        received.files(tmp_path / "folder", limit=LIMIT)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compressions_are_refused(method: int, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", ("a.png", b"1" * 99), method=method)
    with pytest.raises(DataError, match=r"'a\.png' is neither stored nor deflated"):
        received.files(archive, limit=LIMIT)


def test_damage_anywhere_is_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", bytes(range(256)))
        file.writestr("b.png", b"2" * 99)
    whole, path = buffer.getvalue(), tmp_path / "x.zip"
    damaged = [whole[:cut] for cut in range(0, len(whole), 7)]
    damaged += [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in range(len(whole))]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            found = received.files(path, limit=LIMIT)
        except DataError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # dates, attributes, names: the content is as it was
            assert set(found.values()) <= {bytes(range(256)), b"2" * 99}
    assert refused > len(damaged) / 2


@pytest.mark.fault("security", "an annotation folder with links and pipes", "not followed, not opened")
def test_folders_with_links_and_pipes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.png").write_bytes(b"1")
    for target in (tmp_path / "secret" / "a.png", tmp_path / "secret", Path("/dev/zero")):
        (folder / "b.png").symlink_to(target)
        with pytest.raises(DataError, match=r"b\.png: a link that leads out of the folder"):
            received.files(folder, limit=LIMIT)
        (folder / "b.png").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(DataError, match="pipe: no plain file"):
        received.files(folder, limit=LIMIT)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    scan = os.scandir

    def refused(path: str | Path) -> object:
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match="sub: Permission denied; make the folder readable"):
        received.files(tmp_path, limit=LIMIT)


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("x.zip", "folder"):
        with pytest.raises(DataError, match=f"{name}: no such file or folder"):
            received.files(tmp_path / name, limit=LIMIT)
