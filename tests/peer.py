"""Runs scripts of tests/peers with the annotation tools' own libraries, in an environment of their own."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"

needs_peers = pytest.mark.skipif(not PYTHON.is_file(), reason="needs .venv-peers: make .venv-peers/installed")


def run(script: str, *arguments: object) -> str:
    """What tests/peers/SCRIPT.py prints; it fails the test where it fails."""
    command = [PYTHON, ROOT / "tests" / "peers" / f"{script}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
