#!/usr/bin/env bash
# What only a GPU can show, in one go: the gpu tests, CPU and CUDA queries compared, and every benchmark.
# Usage: bench/gpu_pass.sh [FOLDER FOR THE RESULTS]
# Each call of the benchmarks begins nothing after 6 minutes, so that it ends within 8; what was left out is
# named. Their files make the README's section: python -m bench.readme
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
dali="DALI, torch.compile, cuML"
step "$python" -m bench acquisition --device cuda --seconds 360 --out "$out/gpu-acquisition.jsonl" \
    --contender ours --contender "ours, shared features" --contender "$dali" --contender "$dali + our network" \
    --contender "$dali + our entropy" --contender "$dali + our UMAP" --contender "$dali + our seeding"
step "$python" -m bench patch_entropy forward gather confusion decode kmeans_plusplus training \
    --device cuda --seconds 360 --out "$out/gpu.jsonl"
step "$python" -m bench selection diversity neighbors scaling umap scale \
    --device cuda --seconds 360 --out "$out/gpu-pool.jsonl"
# Minutes for each fit of umap-learn
step "$python" -m bench acquisition --device cuda --seconds 360 --out "$out/gpu-umap-learn.jsonl" \
    --contender "OpenCV, bfloat16, unseeded umap-learn" \
    --contender "DataLoader, Pillow, float32, seeded umap-learn"
exit $failed
