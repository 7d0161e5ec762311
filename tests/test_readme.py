"""What the README shows runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["patch", "image"]
    assert len(lines) == 2 * 9


@pytest.mark.parametrize("gpu", [True, False])
def test_make_installs_what_the_machine_can_use(tmp_path: Path, gpu: bool) -> None:
    smi = tmp_path / "nvidia-smi"
    if gpu:
        smi.write_text("#!/bin/sh\n")
        smi.chmod(0o755)
    shell, make = (Path(shutil.which(name) or "").parent for name in ("sh", "make"))
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--file", README.parent / "Makefile", "demo"],
        cwd=README.parent, capture_output=True, text=True, check=True,
        env={"PATH": f"{tmp_path}:{shell}:{make}"},
    )  # fmt: skip
    assert f"--editable '.[{'dev,cuda13' if gpu else 'dev'}]'" in done.stdout


def test_every_option_it_names_exists() -> None:
    from typer.main import get_command

    sys.path.insert(0, str(README.parent))  # bench is not installed
    from bench.__main__ import app as bench
    from meal_gpu.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {o for p in commands["run"].params for o in (*p.opts, *p.secondary_opts)}
    for name in ("report", "compare", "replay", "explain", "acquire", "export", "ingest", "view"):
        known |= {o for p in commands[name].params for o in p.opts}
    known |= {o for p in commands["data"].commands["draw"].params for o in p.opts}
    known |= {o for p in get_command(bench).params for o in p.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README.read_text())) - {"--strict"} <= known


def test_its_figures_are_those_of_the_committed_records() -> None:
    sys.path.insert(0, str(README.parent))  # bench is not installed
    from bench.readme import EXPERIMENTS, SCALE, render, render_experiments, render_scale

    text = README.read_text(encoding="utf-8")
    assert render(text) == text
    page = SCALE.read_text(encoding="utf-8")
    assert render_scale(page) == page
    page = EXPERIMENTS.read_text(encoding="utf-8")
    assert render_experiments(page) == page
    assert "| meal | 0." in text and "`meal-gpu compare` makes of them" in text and "**Pairs**" in text


def test_the_worked_example_is_what_its_command_makes() -> None:
    sys.path.insert(0, str(README.parent))  # bench is not installed
    from bench.example import COMMANDS, block

    text = block(README.read_text(encoding="utf-8"))
    assert tuple(re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE)) == COMMANDS
    assert re.search(r"^query 1: \d+ patches", text, flags=re.MULTILINE)
    assert re.search(r"^labelled: \d+ patches", text, flags=re.MULTILINE)
    assert re.search(r"commit [0-9a-f]{12}", text)
