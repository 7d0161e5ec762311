"""The folder of a dataset: one process at a time makes it, and what a killed one left is cleaned up."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import MakeTree

from meal_gpu.data import downloading, open_dataset, pack, synthetic
from meal_gpu.errors import DataError, RunError
from meal_gpu.lock import alone

KILLED = """
import os, sys
from meal_gpu.data import synthetic
synthetic.write(sys.argv[1], train=2, val=1, size=(16, 16), progress=lambda _: os._exit(9))
"""


def _pack(tree: Path, out: Path) -> Path:
    return pack(open_dataset("cityscapes", tree, size=(24, 48)), out)


def _draw(tree: Path, out: Path) -> Path:
    return synthetic.write(out, train=1, val=1, size=(16, 16))


def _download(tree: Path, out: Path) -> Path:
    return downloading.download("camvid", out, url="http://127.0.0.1:1/x.zip")


@pytest.mark.parametrize("make", [_pack, _draw, _download])
def test_the_second_is_told_who_is_at_work(
    cityscapes_tree: MakeTree, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    tree, out = cityscapes_tree(), tmp_path / "new" / "out"
    out.parent.mkdir()
    (tmp_path / "link").symlink_to(out)
    for name in (out, tmp_path / "link"):
        with alone(out), pytest.raises(RunError, match=r"new/out is in use by process \d+ on .*: wait"):
            make(tree, name)
    assert not list(out.parent.iterdir())


def test_one_that_waits_comes_after(tmp_path: Path) -> None:
    entered: list[str] = []

    def wait() -> None:
        with alone(tmp_path / "out", wait=True):
            entered.append("second")

    thread = threading.Thread(target=wait)
    with alone(tmp_path / "out"):
        thread.start()
        thread.join(0.2)
        entered.append("first")
    thread.join()
    assert entered == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(out)]
    assert subprocess.run(command, cwd=Path.cwd(), check=False).returncode == 9
    assert {p.name for p in tmp_path.iterdir()} == {".partial-out", ".partial-out.lock"}
    _draw(tmp_path, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("make", [_pack, _draw])
def test_what_came_into_being_meanwhile_is_left_alone(
    cityscapes_tree: MakeTree, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    tree, out = cityscapes_tree(), tmp_path / "out"
    make(tree, out)
    with pytest.raises(DataError, match="out: exists already"):
        make(tree, out)


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file: cannot be made: File exists"):
        _draw(tmp_path, tmp_path / "file" / "out")
