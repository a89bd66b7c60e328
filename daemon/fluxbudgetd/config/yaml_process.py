"""Parse YAML in a process of its own, because a file may come with any project.

A malicious file could use memory and time out of proportion to its size, or exploit a defect of libyaml, which is
written in C. The worker is limited in memory and CPU time. It parses one file and ends, so nothing of it stays in
memory. It imports little but PyYAML, which the daemon does not import.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from typing import IO, cast

from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.config.yaml_values import Values, decoded
from fluxbudgetd.errors import ConfigError

_MEMORY = 96 << 20
_CPU_SECONDS = 4
# On a busy machine, a process gets its CPU time later.
_SECONDS = 20.0
# Aliases can make values longer than the file.
_LONGEST_ANSWER = 1 << 20
_PIECE = 1 << 16

# Without `site`, the worker starts in half the time. Its import path is the daemon's.
_PROGRAM = """
import sys
count = int(sys.argv[1])
sys.path[:] = sys.argv[2 : 2 + count]
del sys.argv[1 : 2 + count]
from fluxbudgetd.config.yaml_worker import main
main()
"""

# Other files wait in their threads.
_turn = threading.BoundedSemaphore(2)


class WorkerError(ConfigError):
    """The worker gave no answer. Another attempt may succeed, even with the same file."""


def parse(text: str, path: str, keys: Collection[str]) -> Values:
    """Return the values of these keys of a document's top-level map; raise `ConfigError`. May block for seconds."""
    with _turn:
        output = _output(text, path, keys)
    answer = _decoded(output)
    match answer:
        case {"error": [str(message), str(hint)]}:
            raise ConfigError(message, hint)
        case {"values": values}:
            try:
                return decoded(values)
            except (ValueError, RecursionError):
                pass
    raise WorkerError(
        f"{shown_file(path)}: it cannot be parsed with {_MEMORY >> 20} MiB of memory and {_CPU_SECONDS} s of CPU time",
        "check that it is the right file, and make it smaller",
    )


def _decoded(output: bytes) -> object:
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        return None


def _output(text: str, path: str, keys: Collection[str]) -> bytes:
    """Return what the worker writes until it ends or its time is up."""
    # A file in memory, unlike a pipe, never makes the writer wait.
    fd = os.memfd_create("fluxbudget-yaml", os.MFD_CLOEXEC)
    with open(fd, "w+b") as source:
        source.write(text.encode())
        source.seek(0)
        with _started(source, path, keys) as process:
            try:
                return _read(cast("IO[bytes]", process.stdout).fileno())
            finally:
                process.kill()


def _started(source: IO[bytes], path: str, keys: Collection[str]) -> subprocess.Popen[bytes]:
    places = list(filter(None, sys.path))
    arguments = [str(len(places)), *places, str(_MEMORY), str(_CPU_SECONDS), path, *keys]
    try:
        return subprocess.Popen(  # noqa: S603  our own program, and no shell
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *arguments],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
        )
    except OSError as exc:
        raise WorkerError(
            f"{shown_file(path)}: the process that parses it cannot be started: {exc.strerror or exc}",
            "end other processes; if Python was replaced, restart the daemon",
        ) from exc


def _read(fd: int) -> bytes:
    output = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    deadline = time.monotonic() + _SECONDS
    while (left := deadline - time.monotonic()) > 0 and len(output) <= _LONGEST_ANSWER:
        if poller.poll(left * 1000):
            piece = os.read(fd, _PIECE)
            if not piece:
                return output
            output += piece
    return b""
