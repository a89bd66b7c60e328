"""The native client: compiled for the tests, with the Python client or a stand-in for it beside it."""

import fcntl
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import pytest

from fluxbudgetd import __version__
from harness.daemon import CTL
from harness.peer import Connection, Peer, answer, framed

SOURCES = Path(__file__).parents[2] / "client" / "native"
#: The client of an installed package, which is tested without its sources.
INSTALLED = Path(os.path.abspath(sys.executable)).parent / "fluxbudgetctl"

#: Memory errors and undefined behaviour abort the program; warnings abort its compilation.
SANITIZED = ("-g", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

#: For tests of piped commands, which must pass with both clients.
both_clients = pytest.mark.usefixtures("client")
#: For modules that test the native client itself.
marks = [
    pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources of the native client are not here"),
    pytest.mark.native,
]

#: The piped verbs, as docs/commands.md promises them.
VERBS = ("remaining", "env", "check", "advance", "ping", "hook", "statusline", "numbers", "tokens", "defaults")
#: A time limit that is never reached, and one that is.
PATIENT = ("--timeout", "20")
BRIEF = ("--timeout", "0.3")
JSON = b'{"hook_event_name": "Stop"}'

_PYTHON = tuple(CTL)
_PATIENCE = 60.0


class Compiling(Protocol):
    """`client/native/compile.py`, which is not part of a package."""

    WARNINGS: Sequence[str]
    HARDENING: Sequence[str]

    def compile(self, output: str, version: str) -> bool: ...
    def build(self, compiler: Sequence[str], output: str, version: str, flags: Sequence[str]) -> bool: ...
    def sources(self) -> list[str]: ...
    def is_static(self, program: str) -> bool: ...


@functools.cache
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
                else script.build(compiler, str(made), __version__, (*script.WARNINGS, *SANITIZED))
            ):
                pytest.skip("no C compiler here can make a native client")
            _write_program(directory / "fluxbudgetctl-python", _PYTHON)
            made.rename(program)
    return program


def _write_program(path: Path, command: Sequence[str]) -> None:
    """Write a program that runs a command with its own arguments."""
    words = " ".join(f"'{word}'" for word in command)
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)


def use(program: Path | None) -> None:
    """Make all tests call this client, or with None the Python client."""
    CTL[:] = _PYTHON if program is None else [str(program)]


# Stands in for the Python client: records what it was given.
_STAND_IN = """
import json, os, sys
environ = {name: value for name, value in os.environ.items() if name.startswith(("FLUXBUDGETCTL_", "PYTHON"))}
given = {"words": sys.argv[2:], "environ": environ, "stdin": os.fdopen(0, "rb").read().decode("latin-1")}
with open(sys.argv[1], "w") as file:
    json.dump(given, file)
sys.exit(99)
"""


class Handed(NamedTuple):
    """What was handed on to the Python client."""

    words: list[str]
    stdin: bytes
    failed: str | None
    """`$FLUXBUDGETCTL_FAILED`."""
    environ: dict[str, str]
    """All variables for Python itself and for its client."""


class Outcome(NamedTuple):
    """The observable results of one call."""

    code: int
    out: bytes
    err: bytes
    handed: Handed | None
    """What the Python client was given; None if the native client did everything itself."""


#: A daemon's answer, the outcome of writing it, and the outcome of a hook without an answer.
ANSWER = framed(answer(exit=3, out=b"1501\n", err=b"note\n"))
ANSWERED = Outcome(3, b"1501\n", b"note\n", None)
SILENT = Outcome(0, b"", b"", None)


def handed(outcome: Outcome) -> Handed:
    """Return what Python was given; require that the native client itself has printed nothing."""
    assert outcome.handed is not None, outcome
    assert outcome[:3] == (99, b"", b"")
    return outcome.handed


class Native:
    """The native client in a home of its own, with a stand-in for the Python client beside it."""

    def __init__(self, program: Path, home: Path) -> None:
        self.program = home / "fluxbudgetctl"
        shutil.copy(program, self.program)
        self.home = home
        self.socket = home / "fluxbudget" / "fluxbudgetd.sock"
        self.stand_in = home / "fluxbudgetctl-python"
        self._handed = home / "handed.json"
        script = home / "stand_in.py"
        script.write_text(_STAND_IN)
        _write_program(self.stand_in, [sys.executable, "-I", "-S", str(script), str(self._handed)])

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home), "PATH": os.environ["PATH"]}

    def start(
        self, *words: str | bytes, environ: Mapping[str, str | bytes] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start the client with its output in pipes; `more` goes to `Popen`."""
        self._handed.unlink(missing_ok=True)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.home, **more}
        return subprocess.Popen([self.program, *words], env={**self.environ, **(environ or {})}, **pipes)

    def end(self, process: subprocess.Popen[bytes], given: bytes | None = None) -> Outcome:
        """Wait until the client ends; `given` is written to its stdin if that is a pipe."""
        with process:
            out, err = process.communicate(given, timeout=_PATIENCE)
        return Outcome(process.returncode, out or b"", err or b"", self._read_handed())

    def answering(self, *pieces: bytes) -> Peer:
        """Serve commands at the client's socket: read each completely, then answer with these pieces."""

        def serve(connection: Connection) -> dict[str, Any]:
            request = connection.command()
            for piece in pieces:
                connection.send(piece)
            return request

        return Peer(self.socket, serve)

    def run(
        self, *words: str | bytes, stdin: bytes | int = b"", environ: Mapping[str, str | bytes] | None = None
    ) -> Outcome:
        """Run the client with these bytes, or this file, as its stdin."""
        if isinstance(stdin, int):
            return self.end(self.start(*words, environ=environ, stdin=stdin))
        return self.end(self.start(*words, environ=environ, stdin=subprocess.PIPE), stdin)

    def _read_handed(self) -> Handed | None:
        if not self._handed.exists():
            return None
        given = json.loads(self._handed.read_text())
        environ = given["environ"]
        return Handed(given["words"], given["stdin"].encode("latin-1"), environ.get("FLUXBUDGETCTL_FAILED"), environ)
