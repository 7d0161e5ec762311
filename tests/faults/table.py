"""docs/RELIABILITY.md, made of the `fault` marks of the tests here: `python tests/faults/table.py`.

Without an option every marked test is run, and the file is written when all of them pass. With --check
nothing is run: exit code 1 says that the file is not what the marks say.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "RELIABILITY.md"

SECTIONS = {
    "crash": "Killed in the middle",
    "folder": "Run folders",
    "data": "Bad data",
    "resource": "Resources and models",
    "security": "Security",
    "fuzz": "Nonsense as input",
    "load": "Large inputs (`make soak`)",
}

HEAD = """# What can go wrong, and what happens then

Made by `python tests/faults/table.py` of the tests that show each row; it writes this file only when all of
them pass. A row is a case of its own: {counts}.

The program ends with exit code 0 (done), 1 (an error that its one line on stderr names, or a check that
found something and printed it), 2 (options that cannot be parsed), 70 (a defect of meal-gpu; the line names
the file with the traceback) or 128 and the number of the signal that ended it (Ctrl-C: 130).
"""


class Marks:
    """A pytest plugin: the `fault` marks of what was collected, and which tests did not pass."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, str, str]]] = {section: [] for section in SECTIONS}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            file, _, name = item.nodeid.partition("::")
            for mark in item.iter_markers("fault"):
                section, fault, outcome = mark.args
                row = (fault, outcome, f"[{name.split('[')[0]}](../{file})")
                if row not in self.rows[section]:  # of a test with parameters
                    self.rows[section].append(row)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self.failed.append(report.nodeid)

    def text(self) -> str:
        filled = {section: rows for section, rows in self.rows.items() if rows}
        counts = ", ".join(f"{len(rows)} under “{SECTIONS[section]}”" for section, rows in filled.items())
        parts = [HEAD.format(counts=counts)]
        for section, rows in filled.items():
            lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
            table = "\n".join(
                f"| {line} |" for line in ("fault | what happens | shown by", "---|---|---", *lines)
            )
            parts.append(f"## {SECTIONS[section]}\n\n{table}\n")
        return "\n".join(parts)


def main(check: bool) -> int:
    marks = Marks()
    options = ["--collect-only", "-qq"] if check else []
    code = pytest.main([str(ROOT / "tests"), "-m", "fault", *options], plugins=[marks])
    if code or marks.failed:
        print(
            f"not written: {len(marks.failed)} tests failed or were skipped {marks.failed[:5]}",
            file=sys.stderr,
        )
        return int(code) or 1
    if check:
        return int(FILE.read_text(encoding="utf-8") != marks.text())
    FILE.write_text(marks.text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
