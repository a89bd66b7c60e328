"""The native client, compiled for the tests, with the Python client beside it."""

import fcntl
import importlib.util
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import pytest

from fluxbudgetd import __version__
from harness.daemon import CTL

SOURCES = Path(__file__).parents[2] / "client" / "native"
#: The client of an installed package, which is tested without the sources.
INSTALLED = Path(os.path.abspath(sys.executable)).parent / "fluxbudgetctl"

#: Memory errors and undefined behaviour abort the program.
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

#: For tests of hot verbs, which must pass with both clients.
both_clients = pytest.mark.usefixtures("client")

_PYTHON = tuple(CTL)


class Compiling(Protocol):
    """`client/native/compile.py`, which is not part of a package."""

    WARNINGS: Sequence[str]

    def compile(self, output: str, version: str) -> bool: ...
    def build(self, compiler: Sequence[str], output: str, version: str, flags: Sequence[str]) -> bool: ...
    def sources(self) -> list[str]: ...
    def write_table(self, directory: str) -> None: ...


def compiling() -> Compiling:
    """Load the script that compiles the client."""
    spec = importlib.util.spec_from_file_location("compile_native", SOURCES / "compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return cast("Compiling", module)


def _is_native(program: Path) -> bool:
    return program.is_file() and program.read_bytes()[:4] == b"\x7fELF"


def is_available() -> bool:
    """True if there is a native client to test: its sources, or an installed one."""
    return SOURCES.is_dir() or _is_native(INSTALLED)


def native_client(factory: pytest.TempPathFactory, kind: str = "plain") -> Path:
    """Return the native client, compiled once for all workers. `kind` is "plain" or "sanitized"."""
    if not SOURCES.is_dir():
        return INSTALLED
    # The workers of one run share the parent directory.
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    directory = shared / f"native-{kind}"
    directory.mkdir(exist_ok=True)
    program = directory / "fluxbudgetctl"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            made = directory / "made"
            script = compiling()
            compiler = [os.environ.get("CC", "cc")]
            if not (
                script.compile(str(made), __version__)
                if kind == "plain"
                else script.build(compiler, str(made), __version__, SANITIZED)
            ):
                pytest.skip("no C compiler here can make a native client")
            _put_python_beside(directory)
            made.rename(program)
    return program


def _put_python_beside(directory: Path) -> None:
    beside = directory / "fluxbudgetctl-python"
    words = " ".join(f"'{word}'" for word in _PYTHON)
    beside.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    beside.chmod(beside.stat().st_mode | stat.S_IXUSR)


def use(program: Path | None) -> None:
    """Make all tests call this client, or with None the Python client."""
    CTL[:] = _PYTHON if program is None else [str(program)]
