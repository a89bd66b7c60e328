# Every target does the set-up that it needs. PYTHON is only used to make the virtual environments.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Half of the time a test waits for other processes.
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))

.PHONY: help demo test lint suite wheel-test release-check bench docs install clean

help:
	@echo 'make demo           the main job as a story, in a throw-away home'
	@echo 'make test           lint, types, the whole suite from the sources, and what starts the programs against the built wheel'
	@echo 'make lint           ruff and mypy --strict'
	@echo 'make release-check  sdist, wheel and SBOM into dist/, compared, installed and used'
	@echo 'make bench          measure, as ratios in one run (takes a few minutes)'
	@echo 'make docs           write docs/protocol.md anew from the structs'
	@echo 'make install        fluxbudgetd and fluxbudgetctl for this user (pipx, uv, or ~/.local)'

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

test: lint suite wheel-test

$(VENV)/.release: $(VENV)/.dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[release]'
	@touch $@

release-check: $(VENV)/.release
	@$(BIN)/python tests/release_check.py

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
