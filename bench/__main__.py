"""Run every case, print a table, append the rows to bench/results/."""

import argparse
from importlib import import_module
from pathlib import Path

import torch

from bench import harness

HERE = Path(__file__).parent
CASES = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("case", nargs="*", help=f"of: {', '.join(CASES)}; all by default")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu.jsonl", help="JSON lines")
    arguments = parser.parse_args()
    if unknown := set(arguments.case) - set(CASES):
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    print(f"{'case':16} {'contender':22} {'median':>10} {'p20':>10} {'p80':>10} {'first':>10}  sizes")
    for case in arguments.case or CASES:
        rows = import_module(f"bench.bench_{case}").run(arguments.device)
        harness.write(rows, arguments.out, arguments.device)
        for row in rows:
            times = " ".join(f"{1e3 * t:7.2f} ms" for t in (row.median, row.p20, row.p80, row.first))
            print(f"{row.case:16} {row.contender:22} {times}  {row.sizes}")


if __name__ == "__main__":
    main()
