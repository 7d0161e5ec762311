#!/usr/bin/env bash
# What only a GPU can show, in one go: the gpu tests, CPU and CUDA queries compared, and every benchmark.
# Usage: bench/gpu_pass.sh [FOLDER FOR THE RESULTS]
# The benchmarks alone, in less than 8 minutes: python -m bench --device cuda --seconds 300 --out FILE
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-bench/results}
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=.venv/bin/python
mkdir -p "$out"
failed=0
step() {
    echo "== $*"
    "$@" || { failed=1; echo "== failed: $*"; }
}
step "$python" -m pytest -m gpu --junitxml="$out/gpu-tests.xml"
step "$python" -m bench.parity --out "$out/gpu-parity.jsonl"
step timeout 480 "$python" -m bench --device cuda --seconds 300 --out "$out/gpu.jsonl"
exit $failed
