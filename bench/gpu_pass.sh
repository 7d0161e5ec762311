#!/usr/bin/env bash
# What only a GPU can show, in one go: the gpu tests, CPU and CUDA queries compared, and every benchmark.
# Usage: bench/gpu_pass.sh [FOLDER FOR THE RESULTS]
# Each of the two calls of the benchmarks begins nothing after 6 minutes, so that it ends within 8; what was
# left out is named. Both files make the README's section: python -m bench.readme
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
step "$python" -m bench acquisition --device cuda --seconds 360 --out "$out/gpu-acquisition.jsonl"
step "$python" -m bench patch_entropy forward gather confusion decode kmeans_plusplus selection diversity neighbors \
    scaling umap training scale --device cuda --seconds 360 --out "$out/gpu.jsonl"
exit $failed
