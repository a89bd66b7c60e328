"""Compile the native client: `python compile.py OUTPUT VERSION`."""

import functools
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wvla")
#: Linker flags to try in this order. A static program starts faster because nothing is linked at start-up, and fewer
#: segments mean fewer page faults.
_LINKING = (("-static", "-s", "-Wl,-z,noseparate-code"), ("-s",))
_COMPILERS = ("cc", "gcc", "clang")


def compile(output: str, version: str) -> bool:  # noqa: A001  the name fits too well
    """Compile the client with `$CC`, else with the first compiler that works; return True if the program runs."""
    chosen = os.environ.get("CC")
    for compiler in [shlex.split(chosen)] if chosen else [[name] for name in _COMPILERS]:
        for flags in _LINKING:
            if build(compiler, output, version, flags) and _runs(output):
                return True
    return False


def build(compiler: Sequence[str], output: str, version: str, flags: Sequence[str]) -> bool:
    """Compile with this compiler and these flags; return True if that succeeded."""
    with tempfile.TemporaryDirectory() as directory:
        write_table(directory)
        command = [
            *compiler,
            "-std=c11",
            "-D_GNU_SOURCE",
            "-O2",
            *flags,
            f'-DFLUXBUDGET_VERSION="{version}"',
            "-I",
            directory,
        ]
        try:
            done = subprocess.run([*command, "-o", output, *sources()], capture_output=True, check=False)  # noqa: S603
        except OSError:
            return False
    return done.returncode == 0


def sources() -> list[str]:
    """Return the paths of the client's C files."""
    return sorted(os.path.join(HERE, name) for name in os.listdir(HERE) if name.endswith(".c"))


def write_table(directory: str) -> None:
    """Write `printable.h`, the code points at which `str.isprintable` changes, so that both clients agree."""
    with open(os.path.join(directory, "printable.h"), "w", encoding="ascii") as file:
        file.write(f"static const uint32_t printable_boundaries[] = {{{', '.join(map(str, _boundaries()))}}};\n")


@functools.cache
def _boundaries() -> list[int]:
    found, before = [0], False
    for code in range(sys.maxunicode + 1):
        if chr(code).isprintable() != before:
            before = not before
            found.append(code)
    return found


def _runs(program: str) -> bool:
    """Return True if the program starts. (Without the Python client beside it, it can do no more.)"""
    try:
        done = subprocess.run([os.path.abspath(program)], capture_output=True, check=False)  # noqa: S603
    except OSError:
        return False
    return b"fluxbudgetctl" in done.stderr or done.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if compile(*sys.argv[1:]) else 1)
