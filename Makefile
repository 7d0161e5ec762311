# demo: install, then run active learning on the built-in dataset    test: install, then run the tests
# soak: the tests that take minutes, and docs/RELIABILITY.md    check: formatting, lint, types    bench: the benchmarks    wheel: build dist/*.whl
.PHONY: demo test soak audit check bench wheel

PYTHON ?= python3
BIN := .venv/bin
comma := ,
# cuML, cuDF and CuPy serve only where there is a GPU to run them
EXTRAS := dev$(if $(shell command -v nvidia-smi 2>/dev/null),$(comma)cuda13)

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: .venv/installed
	rm -rf runs/demo
	$(BIN)/meal-gpu run --dataset synthetic --out runs/demo

# The annotation tools' own libraries, to read what we wrote: their pins do not go with ours
.venv-peers/installed: tests/peers/requirements.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --requirement $<
	touch $@

test: .venv/installed .venv-peers/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

soak: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS),fuzz]'
	$(BIN)/python -m pytest -m soak
	$(BIN)/python tests/faults/table.py

# Known holes in what is installed; asks api.osv.dev
audit: .venv/installed
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install pip-audit; }
	.venv-audit/bin/pip-audit --vulnerability-service osv --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

check: .venv/installed
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror kernels/*.[ch]* tests/cuda_on_cpu/*.?pp

bench: .venv/installed
	$(BIN)/python -m bench --out bench/results/cpu.jsonl
	$(BIN)/python -m bench.readme

wheel: .venv/installed
	$(BIN)/python -m build --wheel
