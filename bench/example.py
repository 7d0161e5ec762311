"""Runs the README's worked example and puts what it prints into the README: `python -m bench.example`.

The network is that of `make demo`; the frames are drawn; nobody corrects the pre-labels on the way.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from meal_gpu.record import commit, cpu_name

ROOT = Path(__file__).parent.parent
WEIGHTS = Path("runs/demo/steps/003/model.safetensors")
MODEL = f"--model meal_gpu.models:segmenter --model-arg classes=19 --checkpoint {WEIGHTS}"
FRAMES = "street/leftImg8bit/train"
COMMANDS = (
    "meal-gpu data draw street --train 40 --val 1 --size 192x384 --seed 7",
    f"meal-gpu acquire --images {FRAMES} {MODEL} --budget 0.5h --context 16 --out query-1",
    "meal-gpu export --to cvat --query query-1",
    "meal-gpu ingest query-1/cvat/annotations.xml --query query-1",
    f"meal-gpu export --to smp --images {FRAMES} --out labels",
    f"meal-gpu acquire --images {FRAMES} {MODEL} --budget 2% --pack 4 --out query-2",
)
_BLOCK = re.compile(r"(<!-- example -->\n).*?(<!-- /example -->)", flags=re.DOTALL)


def run() -> str:
    """Every command with what it prints, as a console shows it, without the progress."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "runs").symlink_to(ROOT / "runs")
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        for command in COMMANDS:
            done = subprocess.run(
                command.split(), cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{command}\n{done.stderr}")
            lines += [f"$ {command}", *done.stdout.splitlines()]
    return "\n".join(lines)


def block(readme: str) -> str:
    """What stands between the README's markers."""
    found = _BLOCK.search(readme)
    assert found, "the README has no block called example"
    return found[0]


def main() -> None:
    if not (ROOT / WEIGHTS).is_file():
        sys.exit(f"{WEIGHTS} is missing: make demo")
    text = run()
    made = f"On {cpu_name()}, commit {commit()}, by `make demo` and `python -m bench.example`."
    readme = ROOT / "README.md"
    content = f"```console\n{text}\n```\n\n{made}\n\n"
    old = readme.read_text(encoding="utf-8")
    block(old)
    readme.write_text(_BLOCK.sub(lambda match: match[1] + content + match[2], old), encoding="utf-8")


if __name__ == "__main__":
    main()
