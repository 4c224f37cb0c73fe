VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROCESSES = 2
PACKAGES = .[cpu,mpi,dask,dev,docs]
SHELL := bash
.SHELLFLAGS := -o pipefail -c
TEST = @mkdir -p build && PATH="$(abspath $(BIN)):$$PATH" \
	python -m pytest -m $@ -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25 $(ARGS) | tee build/durations-$@.txt

.PHONY: run test fast unit unit_and_launch launch jax system soak lint docs bench experiments sources clean

run: $(READY)  ## compress the built-in digits network with four MPI workers
	PATH="$(abspath $(BIN)):$$PATH" mpirun -n 4 python -m pbd.run $(ARGS)

test: fast unit_and_launch jax system  ## the whole test suite, stage by stage

fast: $(READY)  ## tests that load no TensorFlow: seconds
	$(TEST)

unit: $(READY)  ## tests that train and score in the process of the tests: minutes
	$(TEST)

launch: $(READY)  ## tests of launchers on a real Slurm, two hosts of Open MPI, SSH: minutes of waiting
	$(TEST)

unit_and_launch: $(READY)  # the cores are busy while the launchers wait
	$(MAKE) --jobs 2 --no-print-directory unit launch

jax: export KERAS_BACKEND = jax
jax: export XLA_FLAGS = --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true
jax: $(READY)  ## tests of the core again, on the JAX backend: a minute
	$(TEST)

system: PROCESSES = 4  # much of this stage is waiting
system: $(READY)  ## tests that start whole runs and clusters: minutes
	$(TEST)

soak: $(READY)  ## inject faults into real runs, many times: hours (ARGS="--share 0.1" for fewer)
	PATH="$(abspath $(BIN)):$$PATH" python -m tests.faults.soak $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documentation and API reference, as pages in build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs

bench: $(READY)  ## replay the paper's logged run times under every scheduler
	$(BIN)/python -m experiments.scheduler_ablation replay

experiments: $(READY)  ## the paper's tables and figures, small (TEACHER=MODEL.keras DATASET=DATA.npz for your own)
	PATH="$(abspath $(BIN)):$$PATH" python -m experiments.paper --quick $(TEACHER:%=--teacher %) $(DATASET:%=--dataset %) $(ARGS)

sources: $(READY)  ## the tables of the other sources, small (TEACHER=MODEL.keras DATASET=DATA.npz for your own)
	PATH="$(abspath $(BIN)):$$PATH" python -m experiments.sources --quick $(TEACHER:%=--teacher %) $(DATASET:%=--dataset %) $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

$(READY): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet uv  # much faster than pip, which remains for indexes that are set for pip alone
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '$(PACKAGES)' || \
		$(BIN)/pip install --quiet --no-compile --editable '$(PACKAGES)'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true  # on all cores; pip compiles on one
	touch $@
