# Every target does the setup that it needs. PYTHON is only used to create the virtual environments.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A test spends about half of its time waiting for other processes.
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))

.PHONY: help demo test lint suite wheel-test bench docs install clean

help:
	@echo 'make demo     show what fluxbudget does, as a story in a throw-away home'
	@echo 'make test     lint, types, the whole suite from the sources, and what starts the programs against the built wheel'
	@echo 'make lint     ruff and mypy --strict'
	@echo 'make bench    measure, as ratios in one run (takes a few minutes)'
	@echo 'make docs     write docs/protocol.md, the map in docs/ARCHITECTURE.md and docs/status.svg'
	@echo 'make install  fluxbudgetd and fluxbudgetctl for this user (pipx, uv, or ~/.local)'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'fluxbudget needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'Python has no venv here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# An editable install does not compile by itself: the native client is compiled again when one of these has changed.
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

# (The tests in a real user manager take a minute; they run once, against the wheel.)
suite: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --ignore=tests/test_user_manager.py

# The wheel in an environment of its own, as a user installs it, with the source tree nowhere on the path. This runs only the
# tests that start the programs as a user does; together they need every part of the package.
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

test: lint suite wheel-test

bench: $(VENV)/.dev
	$(BIN)/python bench/run.py

docs: $(VENV)/.dev
	$(BIN)/python docs/make_protocol.py > docs/protocol.md
	$(BIN)/python docs/make_map.py docs/ARCHITECTURE.md
	$(BIN)/python docs/make_captures.py docs

# Into the user's own environment, with pipx or uv if installed, otherwise pip --user; never by force into the system's Python.
install:
	@if command -v pipx >/dev/null; then pipx install --force .; \
	elif command -v uv >/dev/null; then uv tool install --force .; \
	else $(PYTHON) -m pip install --user --upgrade . \
	  || { echo 'hint: install pipx or uv, then run make install again' >&2; exit 1; }; fi

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
