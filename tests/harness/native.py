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
#: Where the tests run against an installed package, its own client is tried.
INSTALLED = Path(os.path.abspath(sys.executable)).parent / "fluxbudgetctl"

#: Memory that is misused, and what C leaves undefined, end the program.
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

#: For tests of what hot verbs do: they hold for either client.
both_clients = pytest.mark.usefixtures("client")

_PYTHON = tuple(CTL)


class Compiling(Protocol):
    """`client/native/compile.py`, which is no part of a package."""

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


def can_be_had() -> bool:
    """Tell whether there is a native client to be tested: sources, or an installed one."""
    return SOURCES.is_dir() or _is_native(INSTALLED)


def native_client(factory: pytest.TempPathFactory, kind: str = "plain") -> Path:
    """Return the native client, compiled once for all workers; `kind` is plain or sanitized."""
    if not SOURCES.is_dir():
        return INSTALLED
    # The parent is what the workers of one run have in common.
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
                pytest.skip("no C compiler here that makes a native client")
            _put_python_beside(directory)
            made.rename(program)
    return program


def _put_python_beside(directory: Path) -> None:
    beside = directory / "fluxbudgetctl-python"
    words = " ".join(f"'{word}'" for word in _PYTHON)
    beside.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    beside.chmod(beside.stat().st_mode | stat.S_IXUSR)


def use(program: Path | None) -> None:
    """Have all tests call this client; None: Python's."""
    CTL[:] = _PYTHON if program is None else [str(program)]
