"""docs/RELIABILITY.md is what the marks say, and there are as many cases as are promised."""

import subprocess
import sys
from pathlib import Path

from table import FILE, SECTIONS

TABLE = Path(__file__).with_name("table.py")


def test_the_page_is_that_of_the_marks() -> None:
    checked = subprocess.run([sys.executable, str(TABLE), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, f"run `python tests/faults/table.py`\n{checked.stdout[-2000:]}"


def test_there_are_enough_cases() -> None:
    sections = FILE.read_text(encoding="utf-8").split("\n## ")[1:]
    counts = {section.split("\n", 1)[0]: section.count("\n| ") - 1 for section in sections}
    for key, least in (("crash", 20), ("data", 20), ("resource", 10), ("security", 10)):
        assert counts[SECTIONS[key]] >= least, key
