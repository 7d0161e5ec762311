"""Files and folders that are whole or not there, also behind links."""

from pathlib import Path

import pytest

from meal_gpu import atomic
from meal_gpu.errors import RunError


@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_written(there: bool, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    file, folder = tmp_path / "far" / "file", tmp_path / "far" / "folder"
    if there:
        file.write_text("before")
        folder.mkdir()
    for path in (file, folder):
        (tmp_path / path.name).symlink_to(path)
    with atomic.writing(tmp_path / "file") as aside:
        aside.write_text("after")
    with atomic.folder(tmp_path / "folder") as aside:
        (aside / "inside").write_text("after")
    assert file.read_text() == (folder / "inside").read_text() == "after"
    assert all(path.is_symlink() for path in (tmp_path / "file", tmp_path / "folder"))
    assert not list(tmp_path.rglob(".partial-*"))


def test_what_cannot_become_a_new_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full" / "empty").mkdir(parents=True)
    for name in ("file", "full"):
        with pytest.raises(RunError, match=f"{name} is not empty; name another --out"):
            atomic.require_new(tmp_path / name)
    for name in ("new", "full/empty"):
        atomic.require_new(tmp_path / name)
    monkeypatch.chdir(tmp_path / "full" / "empty")
    with pytest.raises(RunError, match="the working directory"):
        atomic.require_new(Path())


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, list[str]]] = []

    def sync(path: Path) -> None:
        done.append((path.relative_to(tmp_path).as_posix(), sorted(p.name for p in tmp_path.glob("[!.]*"))))

    monkeypatch.setattr(atomic, "sync", sync)
    with atomic.writing(tmp_path / "file") as aside:
        aside.write_text("x")
    with atomic.folder(tmp_path / "folder") as aside:
        (aside / "in").mkdir()
        (aside / "in" / "side").write_text("x")
    assert done[:2] == [(".partial-file", []), (".", ["file"])]
    before = [(f".partial-folder{part}", ["file"]) for part in ("/in", "/in/side", "")]
    assert sorted(done[2:4]) == before[:2] and done[4:] == [before[2], (".", ["file", "folder"])]
