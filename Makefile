# Every target does the set-up that it needs. PYTHON is only used to make the virtual environments.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Half of the time a test waits for other processes.
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))

.PHONY: help demo test lint suite yaml-test wheel-test bench docs install clean

help:
	@echo 'make demo     the main job as a story, in a throw-away home'
	@echo 'make test     lint, types, the whole suite from the sources, and what starts the programs against the built wheel'
	@echo 'make lint     ruff and mypy --strict'
	@echo 'make yaml-test  our rules for YAML with each version of PyYAML in requirements/pyyaml'
	@echo 'make bench    measure, as ratios in one run (takes a few minutes)'
	@echo 'make docs     write docs/protocol.md anew from the structs'
	@echo 'make install  fluxbudgetd and fluxbudgetctl for this user (pipx, uv, or ~/.local)'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'fluxbudget needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'Python has no venv here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# An editable install does not compile by itself: the native client is made anew when one of these has changed.
$(VENV)/.runtime: $(VENV)/.made pyproject.toml hatch_build.py $(wildcard client/native/*.*)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

demo: $(VENV)/.runtime
	@$(BIN)/python docs/demo.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests docs hatch_build.py client/native

# (What runs in a user's service manager takes a minute; it is shown once, against the wheel.)
suite: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --ignore=tests/test_user_manager.py

# Our rules for YAML with each version of PyYAML that changed something. 6.0.1 has no wheel for Python 3.13 and later and
# cannot be compiled there: of the wheel for 3.12, such a Python uses the loader that is written in Python.
PYYAML := 6.0.1 6.0.3 6.0.4
PYYAML_6.0.1 = $(shell $(BIN)/python -c 'import sys; print("--python-version=3.12" * (sys.version_info >= (3, 13)))')
$(VENV)/pyyaml/%/.made: requirements/pyyaml/%.txt $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --only-binary :all: \
	  --require-hashes $(PYYAML_$*) --target $(@D) --requirement $<
	@touch $@

yaml-test: $(PYYAML:%=$(VENV)/pyyaml/%/.made)
	@for version in $(PYYAML); do \
	  echo "PyYAML $$version"; \
	  FLUXBUDGET_PYYAML=$$version PYTHONPATH=$(VENV)/pyyaml/$$version $(BIN)/python -m pytest -n $(JOBS) -q \
	    tests/test_yaml_rules.py tests/test_flux_drive_budget.py || exit 1; \
	done

# Against what a user installs: a wheel in an environment of its own, the source tree nowhere on the path. Not all over
# again: the tests that start the programs as a user does, which need every part of the package between them.
WHEEL := build/wheel
WHEEL_TESTS := client hook_client import_order ledger lifecycle project sandbox service service_units statusline \
  terminal top units user_manager
wheel-test: $(VENV)/.dev
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL)/dist .
	@$(PYTHON) -m venv $(WHEEL)/venv
	@$(WHEEL)/venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo $(WHEEL)/dist/*.whl)[test]"
	@mkdir $(WHEEL)/elsewhere && cp -r tests docs config systemd pyproject.toml $(WHEEL)/elsewhere
	cd $(WHEEL)/elsewhere && FLUXBUDGET_TESTED=wheel ../venv/bin/python -m pytest -n $(JOBS) -p no:cacheprovider \
	  $(WHEEL_TESTS:%=tests/test_%.py)

test: lint suite yaml-test wheel-test

bench: $(VENV)/.dev
	$(BIN)/python bench/run.py

docs: $(VENV)/.dev
	$(BIN)/python docs/make_protocol.py > docs/protocol.md

# Into the user's own environment: pipx or uv when there, else pip --user; never into a system's Python by force.
install:
	@if command -v pipx >/dev/null; then pipx install --force .; \
	elif command -v uv >/dev/null; then uv tool install --force .; \
	else $(PYTHON) -m pip install --user --upgrade . \
	  || { echo 'hint: install pipx or uv, then run make install again' >&2; exit 1; }; fi

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
