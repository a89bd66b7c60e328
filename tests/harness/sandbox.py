"""A sandbox that forbids Unix sockets with a seccomp filter: `python sandbox.py ERRNO COMMAND …`."""

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path


def sandbox(error: int) -> tuple[str, ...]:
    """Return a command prefix for a sandbox in which socket(AF_UNIX) fails with this errno."""
    return (sys.executable, str(Path(__file__)), str(error))


#: A command prefix for the sandbox.
SANDBOX = sandbox(errno.EPERM)

# From linux/prctl.h, linux/seccomp.h and linux/audit.h; for each machine the number of socket(2).
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_ALLOW = 0x7FFF0000
_FAIL_WITH = 0x00050000
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_AF_UNIX = 1
# Offsets in struct seccomp_data: the call's number, the machine, the low half of the first argument.
_CALL, _MACHINE, _FIRST = 0, 4, 16
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_unix_sockets(error: int) -> None:
    """Make socket(AF_UNIX) fail with this errno in this process and its children; raises OSError."""
    machine, call = _MACHINES[platform.machine()]
    # (operation, instructions to skip if equal, instructions to skip if not, operand)
    instructions = (
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 0, 5, machine),
        (_LOAD, 0, 0, _CALL),
        (_EQUAL, 0, 3, call),
        (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _FAIL_WITH | error),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in instructions))
    program = _Program(len(instructions), ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    for what, first, second in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if libc.prctl(what, first, second, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the system does not allow the filter")


@cache
def why_not() -> str:
    """Return why no sandbox is possible here, or an empty string."""
    if platform.machine() not in _MACHINES:
        return f"no filter for the machine {platform.machine()}"
    tried = subprocess.run([*SANDBOX, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


if __name__ == "__main__":
    forbid_unix_sockets(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  without a shell, on purpose
