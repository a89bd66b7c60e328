# Every target does the setup that it needs. PYTHON is only used to create the virtual environments.
PYTHON ?= python3
# A test spends about half of its time waiting for other processes.
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 2))
# Tests to run: MARKS is an expression for pytest's -m. FAST=1 is for other versions of Python and of the packages: it leaves
# out the tests marked `soak` (long), `claude` or `native` (the client in C depends on no package and no Python), and
# LONG_TESTS, which take five sixths of the time: nearly all of it passes in processes that they start. Those that are
# left use every package.
MARKS ?=
FAST ?=
LONG_TESTS := abuse admission admission_histories adoption_daemon advance advance_adopted advance_intercore allow \
  bead_labels beads calibrate_command callers ccusage channel_failures choosing ci_recipe client client_deadlines \
  command_channel commands commands_shell commands_stdin continuing desktop_daemon doctor dodges endpoint every_token \
  fail_closed false_daemons field_reports forks hook_client hook_warnings hooks hostile_projects install \
  interband_daemon intercore_states launches learned_estimates ledger lifecycle live live_files live_recount loosening \
  lower_bounds pipe project project_rules refusals reviews run_sessions sandbox service service_leftovers \
  service_units shell_functions shell_loading shell_upstream source_staleness source_states state_files_daemon \
  statusline statusline_client stops subagents subscribers supervision sync sync_command terminal top totals \
  transcript_places transcript_reading upgrade warnings watch write_back

# test-newest, test-lowest and test-all call make again with an environment of their own.
VENV := .venv
BIN := $(VENV)/bin
# Package sets for running and for testing: a file in requirements/, or `newest`.
RUNTIME := runtime
TEST := test

PIP := -m pip --disable-pip-version-check --quiet
PIP_LOCKED := $(PIP) install --require-hashes --requirement
# Installs fluxbudget itself. The build backend comes from the lock, too, so that nothing else is downloaded.
PIP_OURSELVES := $(PIP) install --no-deps --no-build-isolation
SELECTED := $(if $(MARKS),($(MARKS)))$(if $(MARKS),$(if $(FAST), and ))$(if $(FAST),not soak and not native and not claude)
PYTEST := -m pytest -n $(JOBS) $(if $(SELECTED),-m '$(SELECTED)')

.PHONY: help demo test lint suite yaml-test wheel-test release-check test-newest test-lowest test-all pythons lock bench docs install clean always

help:
	@echo 'make demo           show what fluxbudget does, as a story in a throw-away home'
	@echo 'make test           lint, types, the suite on the source tree, and the tests that start programs on the built wheel'
	@echo 'make lint           ruff and mypy --strict'
	@echo 'make yaml-test      our rules for YAML with each version of PyYAML in requirements/pyyaml'
	@echo 'make test-newest    the suite with the newest version of every dependency'
	@echo 'make test-lowest    the suite with the lowest version that pyproject.toml allows'
	@echo 'make test-all       the suite and the tests of the wheel on each of Python 3.11, 3.12 and 3.13 that is installed'
	@echo 'make release-check  sdist, wheel and SBOM into dist/, compared, installed and used'
	@echo 'make lock           write requirements/*.txt after a change of the dependencies; UPGRADE=1 updates all versions'
	@echo 'make bench          measure performance, as ratios within one run (takes a few minutes)'
	@echo 'make docs           write docs/protocol.md, the map in docs/ARCHITECTURE.md and docs/status.svg'
	@echo 'make install        fluxbudgetd and fluxbudgetctl for this user (pipx, uv, or ~/.local)'
	@echo
	@echo "FAST=1 leaves out the tests that take three quarters of the time; MARKS='…' selects tests as pytest's -m does; PYTHON=… and PYTHONS='…' name interpreters."

# A changed lock makes a new environment, so that no package of the old one remains.
$(VENV)/.made: $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'fluxbudget needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) \
	  || { echo 'Python has no venv here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

LOCKED := runtime test dev release lowest
$(LOCKED:%=$(VENV)/.%): $(VENV)/.%: requirements/%.txt $(VENV)/.made
	@$(BIN)/python $(PIP_LOCKED) $<
	@touch $@

# Always runs, because the index may have newer versions.
$(VENV)/.newest: $(VENV)/.made always
	@$(BIN)/python $(PIP) install --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

# An editable install does not compile by itself, so the native client is compiled again when one of these files changes.
$(VENV)/.ourselves: $(VENV)/.$(RUNTIME) pyproject.toml hatch_build.py $(wildcard client/native/*.* client/script/*)
	@$(BIN)/python $(PIP_OURSELVES) --editable .
	@touch $@

# A Ctrl-C before Python runs the script would print a traceback: env blocks it (coreutils 8.31 and newer).
HOLD_SIGINT := $(shell env --block-signal=INT true 2>/dev/null && echo env --block-signal=INT)
demo: $(VENV)/.ourselves
	@$(HOLD_SIGINT) $(BIN)/python docs/demo.py

lint: $(VENV)/.ourselves $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests docs hatch_build.py client/native

# Programs that the tests run, from npm (half a gigabyte). The lock has their hashes, and none needs a script to be installed.
# Without npm, or without a network, tests that need them are skipped. Tests that only root can run need none.
NPM := build/npm
$(NPM)/.made: requirements/npm/package-lock.json
	@rm -rf $(NPM) && mkdir -p $(NPM) && cp requirements/npm/*.json $(NPM)
	@if npm ci --prefix $(NPM) --ignore-scripts --no-audit --no-fund --loglevel=error; then touch $@; \
	else echo 'npm failed: the tests that need its packages will be skipped' >&2; fi
# (`make suite MARKS=privileged` needs none of them.)
PROGRAMS := $(if $(filter +privileged,+$(MARKS)),,$(if $(shell command -v npm),$(NPM)/.made))

# (The tests in a real user manager take a minute; they run once, against the wheel.)
suite: $(VENV)/.ourselves $(VENV)/.$(TEST) $(PROGRAMS)
	$(BIN)/python $(PYTEST) --ignore=tests/test_user_manager.py $(if $(FAST),$(LONG_TESTS:%=--ignore=tests/test_%.py))

# Our rules for YAML with each version of PyYAML that changed something. 6.0.1 has no wheel for Python 3.13 or later and
# does not compile there, so these use the wheel for 3.12, with its pure-Python loader.
PYYAML := 6.0.1 6.0.3 6.0.4
PYYAML_6.0.1 = $(shell $(BIN)/python -c 'import sys; print("--python-version=3.12" * (sys.version_info >= (3, 13)))')
$(VENV)/pyyaml/%/.made: requirements/pyyaml/%.txt $(VENV)/.ourselves $(VENV)/.$(TEST)
	@$(BIN)/python $(PIP) install --upgrade --no-deps --only-binary :all: \
	  --require-hashes $(PYYAML_$*) --target $(@D) --requirement $<
	@touch $@

yaml-test: $(PYYAML:%=$(VENV)/pyyaml/%/.made)
	@for version in $(PYYAML); do \
	  echo "PyYAML $$version"; \
	  FLUXBUDGET_PYYAML=$$version PYTHONPATH=$(VENV)/pyyaml/$$version $(BIN)/python $(PYTEST) -q \
	    tests/test_yaml_rules.py tests/test_flux_drive_budget.py || exit 1; \
	done

# The wheel in an environment of its own, as a user installs it, with the source tree nowhere on the path. This runs only the
# tests that start the programs as a user does; together they need every part of the package.
WHEEL := build/wheel
WHEEL_TESTS := client hook_client hook_settings import_order ledger lifecycle project sandbox service service_units statusline \
  terminal top units user_manager
wheel-test: $(VENV)/.ourselves
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(BIN)/python $(PIP) wheel --no-deps --no-build-isolation --wheel-dir $(WHEEL)/dist .
	@$(BIN)/python -m venv $(WHEEL)/venv
	@$(WHEEL)/venv/bin/python $(PIP_LOCKED) requirements/test.txt
	@$(WHEEL)/venv/bin/python $(PIP_OURSELVES) $(WHEEL)/dist/*.whl
	@mkdir $(WHEEL)/elsewhere && cp -r tests docs config systemd pyproject.toml $(WHEEL)/elsewhere
	cd $(WHEEL)/elsewhere && FLUXBUDGET_TESTED=wheel ../venv/bin/python $(PYTEST) -p no:cacheprovider \
	  $(WHEEL_TESTS:%=tests/test_%.py)

test: lint suite yaml-test wheel-test

test-newest:
	@$(MAKE) suite VENV=build/env/newest RUNTIME=newest TEST=newest

# Locked, because only direct dependencies are at their lowest versions; transitive ones are not.
test-lowest:
	@$(MAKE) suite VENV=build/env/lowest RUNTIME=lowest TEST=lowest

# Leave out Debian's Python without python3-venv, which cannot make an environment. pyenv's shims run only what
# PYENV_VERSION lists. (Make drops the output if the last command is not found.)
PYTHONS ?= $(shell for name in python3.11 python3.12 python3.13; do \
  PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | paste -sd:) \
  $$name -c 'import ensurepip, sys, venv; print(sys.executable)' 2>/dev/null; done; true)

pythons:
	@printf '%s\n' $(or $(PYTHONS),$(PYTHON))

test-all:
	@failed=; for python in $(or $(PYTHONS),$(PYTHON)); do \
	  version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit; \
	  echo "== Python $$version"; \
	  $(MAKE) suite $(if $(FAST),,wheel-test) VENV=build/env/$$version PYTHON="$$python" RUNTIME=test || failed="$$failed $$version"; \
	done; \
	[ -z "$$failed" ] || { echo "failed on Python$$failed" >&2; exit 1; }

release-check: $(VENV)/.ourselves $(VENV)/.release
	@$(BIN)/python tests/release_check.py

# One lock for every Python and machine, with the hashes of all files. The smaller sets repeat the versions of dev.
UV := build/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
  --custom-compile-command 'make lock' --group build $(if $(UPGRADE),--upgrade) pyproject.toml
lock: $(UV)
	$(COMPILE) --extra test --extra lint --output-file requirements/dev.txt
	$(COMPILE) --extra test --constraint requirements/dev.txt --output-file requirements/test.txt
	$(COMPILE) --constraint requirements/dev.txt --output-file requirements/runtime.txt
	$(COMPILE) --extra release --constraint requirements/dev.txt --output-file requirements/release.txt
	$(COMPILE) --extra test --resolution lowest-direct --output-file requirements/lowest.txt

$(UV):
	@$(PYTHON) -m venv build/uv
	@build/uv/bin/python $(PIP) install uv==0.13.9

bench: $(VENV)/.ourselves $(VENV)/.test
	$(BIN)/python bench/run.py

docs: $(VENV)/.ourselves
	$(BIN)/python docs/make_protocol.py > docs/protocol.md
	$(BIN)/python docs/make_map.py docs/ARCHITECTURE.md
	$(BIN)/python docs/make_captures.py docs

# Into the user's own environment, with pipx or uv if installed, otherwise pip --user; never forced into the system's Python.
install:
	@if command -v pipx >/dev/null; then pipx install --force .; \
	elif command -v uv >/dev/null; then uv tool install --force .; \
	else $(PYTHON) -m pip install --user --upgrade . \
	  || { echo 'hint: install pipx or uv, then run make install again' >&2; exit 1; }; fi

clean:
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
