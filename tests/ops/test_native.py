"""Compiling and caching the CPU's kernels, and what is said where that cannot be done."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from meal_gpu import ops
from meal_gpu.errors import UnavailableError
from meal_gpu.grid import Grid
from meal_gpu.ops import compile, cpu, native, reference, select, select_for, why_not_cpu

GPP = shutil.which("g++")
pytestmark = pytest.mark.skipif(GPP is None, reason="needs g++: apt install g++")

Forget = Callable[[], None]
Script = Callable[[str], None]


@pytest.fixture
def forget(fresh_kernels: Forget) -> Forget:
    return fresh_kernels


@pytest.fixture
def folder(forget: Forget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder of kernels, in which nothing is."""
    monkeypatch.setenv("MEAL_GPU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/kernels"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Make a script $CXX; its arguments are in $@, and $out is the file to write."""

    def make(script: str) -> None:
        path = tmp_path / "my-c++"
        path.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {tmp_path}/asked\n'
            'out=; for word in "$@"; do [ "$out" = next ] && out=$word; [ "$word" = -o ] && out=next; done\n'
            f"{script}\n"
        )
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return make


def built(tmp_path: Path) -> int:
    """How often a library was compiled."""
    asked = tmp_path / "asked"
    return sum(" -o " in f" {line}" for line in asked.read_text().splitlines()) if asked.exists() else 0


def works() -> bool:
    scores = cpu.patch_entropy(torch.zeros(1, 2, 4, 4), Grid(1, 1, 4, 4), (4, 4), True)
    return abs(float(scores) - 0.6931472) < 1e-6


def test_the_second_use_compiles_nothing(
    folder: Path, forget: Forget, compiler: Script, tmp_path: Path
) -> None:
    compiler(f'exec {GPP} "$@"')
    assert why_not_cpu() is None
    (library,) = folder.iterdir()
    assert library.suffix == ".so"
    before = library.stat()
    forget()
    assert works()
    assert built(tmp_path) == 1
    assert list(folder.iterdir()) == [library]
    assert library.stat().st_mtime_ns == before.st_mtime_ns


def test_other_flags_sources_and_compilers_make_other_files(
    folder: Path, forget: Forget, compiler: Script, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    native.library()
    changed = tmp_path / "kernels"
    shutil.copytree(compile.folder(), changed)
    with (changed / "cpu_gather.cpp").open("a") as file:
        file.write("// changed\n")
    header = changed / "cpu.hpp"
    for count, change in enumerate(
        (
            lambda: monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DANYTHING")),
            lambda: monkeypatch.setattr(compile, "folder", lambda: changed),
            lambda: header.write_text(header.read_text() + "// changed\n"),
            lambda: compiler(f'exec {GPP} "$@"'),
            # what -march=native is, or another version
            lambda: compiler(f'[ "$out" ] || echo "another processor" >&2; exec {GPP} "$@"'),
        ),
        start=2,
    ):
        change()
        forget()
        assert works()
        assert len(list(folder.iterdir())) == count


TRY = (sys.executable, "-c", "from meal_gpu import doctor; print(doctor._kernels())")


def test_a_damaged_library_is_compiled_again(folder: Path) -> None:
    native.library()
    (library,) = folder.iterdir()
    size = library.stat().st_size
    for damage in (b"", b"not a library"):
        library.unlink()  # this process still runs it
        library.write_bytes(damage)
        # another process: this one would be given what it has under that name
        done = subprocess.run(TRY, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "compiled for this processor\n"), done.stderr
        assert library.stat().st_size == size


def test_what_compiles_but_does_not_load_is_named(folder: Path, compiler: Script) -> None:
    compiler('[ -z "$out" ] || echo garbage > "$out"')
    with pytest.raises(
        UnavailableError, match=r"cpu-\w+\.so was compiled but cannot be loaded .*MEAL_GPU_CACHE"
    ):
        native.library()


def test_processes_that_start_together_do_not_disturb_each_other(folder: Path) -> None:
    started = [
        subprocess.Popen(TRY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in started:
        told, wrong = process.communicate(timeout=300)
        assert (process.returncode, told) == (0, "compiled for this processor\n"), wrong
    (library,) = folder.iterdir()
    assert library.suffix == ".so"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "my-c++ fails: it ended with 3. Repair it (apt install g++), or set CXX to another"),
        (
            "echo 'cc1plus: fatal error: lost its way' >&2; exit 1",
            "my-c++ fails: cc1plus: fatal error: lost its way. Repair it (apt install g++), or set CXX",
        ),
        (
            f'[ "$out" ] || exec {GPP} "$@"; echo "ld: error: No space left on device" >&2; exit 1',
            "No space left on device. Make room, or set MEAL_GPU_CACHE to another folder",
        ),
    ],
)  # fmt: skip
def test_a_compiler_that_fails_is_asked_once_and_says_why(
    script: str, told: str, folder: Path, compiler: Script, tmp_path: Path
) -> None:
    compiler(script)
    why = why_not_cpu()
    assert why is not None
    assert told in why
    asked = (tmp_path / "asked").read_text()
    for _ in range(3):
        with pytest.raises(UnavailableError) as error:
            select("cpu")
        assert told in str(error.value)
        assert "ops 'cpu' cannot work here" in str(error.value)
        assert "Use --ops reference meanwhile" in str(error.value)
    assert (tmp_path / "asked").read_text() == asked
    assert not folder.exists() or list(folder.iterdir()) == []


def test_a_script_that_is_no_program_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "text"))
    why = why_not_cpu()
    assert why is not None
    assert "text does not run: " in why
    assert "or set CXX to another" in why


def test_a_compiler_may_have_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ -DANYTHING")
    assert native.compiler() == [GPP, "-DANYTHING"]
    assert works()


@pytest.mark.parametrize(
    ("path", "cxx", "told"),
    [
        ("", None, "no C++ compiler (c++, g++, clang++): apt install g++, or set CXX to the path of one"),
        (None, "/no/such/g++", "CXX=/no/such/g++ is not there: apt install g++, or set CXX"),
        (None, "g++ '", "CXX=g++ ' is no command: No closing quotation"),
    ],
)
def test_without_a_compiler_auto_is_the_reference_and_says_so_once(
    path: str | None, cxx: str | None, told: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    if cxx is None:
        monkeypatch.delenv("CXX", raising=False)
    else:
        monkeypatch.setenv("CXX", cxx)
    monkeypatch.setattr(ops, "why_not_cuda", lambda: "no GPU")
    with pytest.warns(UserWarning, match="the slower reference ops are used: ") as caught:
        assert select_for(torch.device("cpu")) is reference
    assert told in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select("auto") is reference
        assert select("reference") is reference
    with pytest.raises(UnavailableError) as error:
        select("cpu")
    assert told in str(error.value)


@pytest.mark.parametrize("place", ["in a file", "in /proc", "read-only"])
def test_a_cache_that_cannot_be_written_is_named(
    place: str, forget: Forget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = {"in a file": tmp_path / "file/cache", "in /proc": Path("/proc/cache"), "read-only": tmp_path}[
        place
    ]
    (tmp_path / "file").write_text("")
    if place == "read-only":
        # permissions do not stop root
        monkeypatch.setattr(native.tempfile, "mkstemp", _refuse)
    monkeypatch.setenv("MEAL_GPU_CACHE", str(root))
    why = why_not_cpu()
    assert why is not None
    assert f"{root}/kernels cannot be written: " in why
    assert why.endswith("set MEAL_GPU_CACHE to another folder")


@pytest.mark.parametrize(
    ("home", "root", "told"), [("", "", "determine home"), (None, "x" * 300, "File name too long")]
)
def test_a_cache_that_cannot_be_looked_into_is_named(
    home: str | None, root: str, told: str, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEAL_GPU_CACHE", root)
    if home is not None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", _homeless)
    why = why_not_cpu()
    assert why is not None
    assert why.startswith("there is no cache folder: ")
    assert told in why
    assert why.endswith("Set MEAL_GPU_CACHE to one")


def _homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def _refuse(**_: object) -> None:
    raise OSError(30, "Read-only file system")


def test_a_library_in_a_cache_that_cannot_be_written_serves(
    folder: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.library()
    monkeypatch.setattr(native.tempfile, "mkstemp", _refuse)
    forget()
    assert works()


def test_a_killed_compilation_leaves_nothing_that_is_taken_for_a_library(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".partial-abc.so").write_bytes(b"half")
    assert works()


def test_the_kernels_use_the_widest_vectors_of_this_processor(folder: Path) -> None:
    if shutil.which("objdump") is None or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs objdump and an x86 processor with AVX2")
    native.library()
    (library,) = folder.iterdir()
    code = subprocess.run(["objdump", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    register = "%zmm" if "avx512f" in Path("/proc/cpuinfo").read_text() else "%ymm"
    # the exponential's last step, and the gather that a shuffle takes the place of
    assert any("vpslld" in line and register in line for line in code.splitlines())
    assert any("vpermps" in line and register in line for line in code.splitlines())
