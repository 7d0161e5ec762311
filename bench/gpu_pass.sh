#!/usr/bin/env bash
# What only a GPU can show, in one go: the gpu tests, CPU and CUDA queries compared, the benchmarks, and a
# pool of Cityscapes' size through a whole acquisition. Usage: bench/gpu_pass.sh [FOLDER FOR THE RESULTS]
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
step "$python" -m bench.acquisition --images 2975 --size 512x1024 --device cuda --out "$out/gpu-acquisition.jsonl"
step "$python" -m bench --device cuda --out "$out/gpu.jsonl"
exit $failed
