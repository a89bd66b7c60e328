"""Compile the native client: `python compile.py OUTPUT VERSION`."""

import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
WARNINGS = ("-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wvla")
#: Some distributions define _FORTIFY_SOURCE themselves.
HARDENING = ("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2")

# Fewer segments mean fewer page faults at the start of the program.
_LINKING = ("-s", "-Wl,-z,relro,-z,now,-z,noseparate-code")
_STATIC = (("-static-pie", "-fPIE", *_LINKING), ("-static", *_LINKING))
_DYNAMIC = ("-DFLUXBUDGET_DYNAMIC", "-s", "-Wl,-z,relro,-z,now")
# musl first: at start-up, glibc queries the processor's features, which in a virtual machine takes longer than the rest
# of the program.
_MUSL = "musl-gcc"
_COMPILERS = (_MUSL, "cc", "gcc", "clang")

# Numbers from elf(5).
_ELFCLASS64 = 2
_PT_INTERP = 3


def compile(output: str, version: str) -> bool:  # noqa: A001  the name fits too well
    """Compile the client with `$CC`, else with the first compiler that works; return True if the program runs.

    A static program starts faster because nothing is linked at start-up.
    """
    chosen = os.environ.get("CC")
    for compiler in [shlex.split(chosen)] if chosen else [[name] for name in _COMPILERS]:
        for flags in _variants(compiler):
            is_wanted = build(compiler, output, version, (*HARDENING, *flags)) and _runs(output)
            # A compiler may ignore flags that it does not know, and link dynamically.
            if is_wanted and is_static(output) == (flags is not _DYNAMIC):
                return True
    return False


def build(compiler: Sequence[str], output: str, version: str, flags: Sequence[str]) -> bool:
    """Compile with this compiler and these flags; return True if that succeeded."""
    command = [*compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", f'-DFLUXBUDGET_VERSION="{version}"', *flags]
    try:
        done = subprocess.run([*command, "-o", output, *sources()], capture_output=True, check=False)  # noqa: S603
    except OSError:
        return False
    return done.returncode == 0


def sources() -> list[str]:
    """Return the paths of the client's C files."""
    return sorted(os.path.join(HERE, name) for name in os.listdir(HERE) if name.endswith(".c"))


def is_static(program: str) -> bool:
    """Return True if the kernel starts this ELF program by itself, without a dynamic loader.

    Shared libraries are loaded by the program's interpreter (PT_INTERP), so a program that runs and has none needs no
    libraries. That includes static-pie programs, which have a dynamic section.
    """
    with open(program, "rb") as file:
        image = file.read()
    is_wide = image[4] == _ELFCLASS64
    # The offsets of e_phoff, e_phentsize and e_phnum are in elf(5). The program has run, so the byte order is the
    # machine's.
    (table,) = struct.unpack_from("=Q" if is_wide else "=I", image, 32 if is_wide else 28)
    size, count = struct.unpack_from("=HH", image, 54 if is_wide else 42)
    kinds = [struct.unpack_from("=I", image, table + index * size)[0] for index in range(count)]
    return _PT_INTERP not in kinds


def _variants(compiler: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the flags to try with a compiler, the best ones first."""
    is_wrapper = os.path.basename(compiler[0]) == _MUSL
    if is_wrapper:
        yield from _musl_static_pie(compiler[0])
    yield from _STATIC
    if not is_wrapper:  # few machines have musl's dynamic loader
        yield _DYNAMIC


def _musl_static_pie(wrapper: str) -> Iterator[Sequence[str]]:
    """Yield the flags for a static-pie program, if the libraries are found.

    The wrapper cannot link such a program itself, because it always uses the start files of other programs.
    """
    try:
        with open(shutil.which(wrapper) or wrapper, encoding="utf-8") as script:
            found = re.search(r'-specs[ =]"?([^"\s]+)/musl-gcc\.specs', script.read())
    except (OSError, UnicodeDecodeError):
        return
    if found:
        start = (os.path.join(found[1], name) for name in ("rcrt1.o", "crti.o", "crtn.o"))
        yield "-static", "-fPIE", "-nostartfiles", "-Wl,-pie,--no-dynamic-linker,-z,text", *_LINKING, *start


def _runs(program: str) -> bool:
    """Return True if the program starts. (Without the Python client beside it, it can only report an error.)"""
    try:
        done = subprocess.run([os.path.abspath(program)], capture_output=True, check=False)  # noqa: S603
    except OSError:
        return False
    return b"fluxbudgetctl" in done.stderr or done.returncode == 0


if __name__ == "__main__":
    sys.exit(0 if compile(*sys.argv[1:]) else 1)
