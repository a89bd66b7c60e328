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
#: A static program starts in less time: nothing is linked when it does; in fewer segments, fewer pages are brought in.
_WAYS = (("-static", "-s", "-Wl,-z,noseparate-code"), ("-s",))
_COMPILERS = ("cc", "gcc", "clang")


def compile(output: str, version: str) -> bool:  # noqa: A001  that is what it does
    """Compile the client with `$CC`, or the first compiler that is there; tell whether there is a client that runs."""
    chosen = os.environ.get("CC")
    for compiler in [shlex.split(chosen)] if chosen else [[name] for name in _COMPILERS]:
        for way in _WAYS:
            if build(compiler, output, version, way) and _runs(output):
                return True
    return False


def build(compiler: Sequence[str], output: str, version: str, flags: Sequence[str]) -> bool:
    """Compile with one compiler and with these flags; tell whether it has worked."""
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
    """Write `printable.h`: the characters at which `str.isprintable` changes. So both clients have one rule."""
    with open(os.path.join(directory, "printable.h"), "w", encoding="ascii") as file:
        file.write(f"static const uint32_t turns[] = {{{', '.join(map(str, _turns()))}}};\n")


@functools.cache
def _turns() -> list[int]:
    found, before = [0], False
    for code in range(sys.maxunicode + 1):
        if chr(code).isprintable() != before:
            before = not before
            found.append(code)
    return found


def _runs(program: str) -> bool:
    """Tell whether the program starts; without the Python client beside it, that is all that it does."""
    try:
        done = subprocess.run([os.path.abspath(program)], capture_output=True, check=False)  # noqa: S603
    except OSError:
        return False
    return b"fluxbudgetctl" in done.stderr or done.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if compile(*sys.argv[1:]) else 1)
