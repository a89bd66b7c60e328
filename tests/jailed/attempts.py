"""Tries what a sandbox may forbid and writes the outcomes to FILE, as JSON: python attempts.py FILE.

`null` means that the attempt succeeded; otherwise the value is the name of the errno.
"""

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOME = Path.home()
RUNTIME = Path(os.environ["XDG_RUNTIME_DIR"])
# linux/sched.h, linux/ptrace.h, asm-generic/unistd.h, sys/mman.h
CLONE_NEWUSER = 0x10000000
PTRACE_DETACH = 17
IO_URING_SETUP = 425
PROT_ALL, MAP_PRIVATE_ANONYMOUS = 7, 0x22


def outcome(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return None


def written(path: Path) -> Callable[[], object]:
    return lambda: path.open("a").close()


def made_setuid() -> None:
    path = HOME / ".interband" / "attempt"
    path.touch()
    path.chmod(0o4700)


def called(name: str, *arguments: int) -> Callable[[], object]:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_long

    def attempt() -> None:
        if function(*map(ctypes.c_long, arguments)) == -1:
            raise OSError(ctypes.get_errno(), name)

    return attempt


ATTEMPTS: dict[str, Callable[[], object]] = {
    "an internet socket": lambda: socket.create_connection(("127.0.0.1", 9)),
    "another internet socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
    "a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "io_uring": called("syscall", IO_URING_SETUP, 1, 0),
    "the home": written(HOME / "attempt"),
    "a project": written(HOME / "project" / "attempt"),
    "Claude's settings": written(HOME / ".claude" / "settings.json"),
    "transcripts": written(HOME / ".claude" / "projects" / "attempt"),
    "the configuration": written(HOME / ".config" / "fluxbudget" / "config.toml"),
    "a unit": written(HOME / ".config" / "systemd" / "user" / "fluxbudgetd.service"),
    "the runtime directory": written(RUNTIME / "attempt"),
    "/srv": written(Path("/srv/attempt")),
    "a place that may be opened": written(Path("/srv/interband/attempt")),
    "the kernel": lambda: Path("/proc/sys/kernel/core_pattern").open("w").close(),
    "keys": lambda: list((HOME / ".ssh").iterdir()),
    "a cloud's keys": lambda: list((HOME / ".aws").iterdir()),
    "Claude's credentials": (HOME / ".claude" / ".credentials.json").read_text,
    "a password": (HOME / ".netrc").read_text,
    "more keys": lambda: list((HOME / ".gnupg").iterdir()),
    "others' temporary file": lambda: Path("/tmp/of-others").read_text(),  # noqa: S108
    "a temporary project": lambda: Path("/tmp/project/file").read_text(),  # noqa: S108
    "others' shared memory": lambda: Path("/dev/shm/of-others").read_text(),  # noqa: S108
    "a setuid program": made_setuid,
    "code made at run time": called("mmap", 0, 4096, PROT_ALL, MAP_PRIVATE_ANONYMOUS, -1, 0),
    "priority": lambda: os.nice(1),
    "a trace": called("ptrace", PTRACE_DETACH, os.getppid(), 0, 0),
    # What the sandbox must allow.
    "PostgreSQL's password": (HOME / ".pgpass").read_text,
    "the ancestors of a client": lambda: Path("/proc/1/stat").read_text(),
    "the state": written(HOME / ".local" / "state" / "fluxbudget" / "attempt"),
    "the side-band": written(HOME / ".interband" / "attempt"),
    "the plugin's directory": written(HOME / ".claude" / "interstat" / "attempt"),
    "state files": written(RUNTIME / "fluxbudget" / "attempt"),
    "a temporary file": written(Path("/tmp/attempt")),  # noqa: S108
    "a program": lambda: subprocess.run(["true"], check=True),
    # Last, because the other attempts would fail in a user namespace.
    "a namespace": called("unshare", CLONE_NEWUSER),
}

if __name__ == "__main__":
    with suppress(IndexError):
        Path(sys.argv[1]).write_text(json.dumps({name: outcome(attempt) for name, attempt in ATTEMPTS.items()}))
