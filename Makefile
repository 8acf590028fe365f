# Set-up and the two main commands. `make demo` and `make test` make the environment when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo defence-demo test check format bench clean bench-finetune

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/countersteer demo --out runs/demo

defence-demo: $(STAMP)
	$(BIN)/countersteer defence demo --out runs/defence

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP)
	$(BIN)/ruff check --fix-only -q src tests bench
	$(BIN)/ruff format -q src tests bench

bench: $(STAMP)
	$(BIN)/python bench/run.py --out bench/out.json

bench-finetune: $(STAMP)
	$(BIN)/python bench/finetune.py table --out runs/bench-finetune

clean:
	rm -rf $(VENV) runs bench/out.json
