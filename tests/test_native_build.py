"""How the native client is compiled."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from harness import native

pytestmark = native.marks

CHECKS = ("--enable=warning,style,performance,portability", "--error-exitcode=1", "--inline-suppr", "--quiet")
COMPILERS = ("musl-gcc", "cc", "gcc", "clang")


def compilers() -> list[str]:
    """Return the compilers here, without other names of the same one; skip if there are none."""
    found = {os.path.realpath(path): name for name in COMPILERS if (path := shutil.which(name))}
    if not found:
        pytest.skip("no C compiler here")
    return list(found.values())


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = " and ".join(program for program in programs if shutil.which(program) is None)
    return pytest.mark.skipif(bool(missing), reason=f"{missing} is not installed")


def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None) -> tuple[Path, str]:
    """Return a client compiled with `$CC`, and the version that it passes on."""
    if compiler is None:
        monkeypatch.delenv("CC", raising=False)
    else:
        monkeypatch.setenv("CC", compiler)
    made = tmp_path / "made"
    assert native.compiling().compile(str(made), "1.2.3")
    assert made.stat().st_mode & stat.S_IXUSR
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return made, native.handed(native.Native(made, home).run("version")).environ["FLUXBUDGETCTL_NATIVE"]


def program_headers(program: Path) -> str:
    command = ["readelf", "--wide", "--program-headers", "--dynamic", str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs("musl-gcc", "readelf")
def test_musl_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a static program that can be loaded at any address, with read-only relocations."""
    for compiler in (None, "musl-gcc"):
        made, version = compiled(tmp_path, monkeypatch, compiler)
        assert version == "1.2.3 musl"
        assert native.compiling().is_static(str(made))
        headers = program_headers(made)
        assert "file type is DYN" in headers
        assert "GNU_RELRO" in headers
        assert "NOW" in headers


@needs("gcc", "readelf")
def test_static_client_with_glibc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, version = compiled(tmp_path, monkeypatch, "gcc")
    if "dynamic" in version:
        pytest.skip("the C library here has no static version (on Debian: apt-get install libc6-dev)")
    assert version == "1.2.3 glibc static"
    assert native.compiling().is_static(str(made))
    headers = program_headers(made)
    assert "file type is DYN" in headers
    assert "GNU_RELRO" in headers


@needs("musl-gcc")
def test_musl_that_cannot_be_loaded_at_any_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program then has a fixed address."""
    wrapper = tmp_path / "musl-gcc"
    real = shutil.which("musl-gcc")
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" -nostartfiles "*) exit 1 ;; esac\nexec {real} "$@"\n')
    wrapper.chmod(0o700)
    made, version = compiled(tmp_path, monkeypatch, str(wrapper))
    assert version == "1.2.3 musl"
    assert native.compiling().is_static(str(made))


def test_compiler_that_cannot_link_statically_makes_a_dynamic_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers()
    partial = tmp_path / "partial cc"
    partial.write_text('#!/bin/sh\ncase " $* " in *" -static"*) exit 1 ;; esac\nexec cc "$@"\n')
    partial.chmod(0o700)
    made, version = compiled(tmp_path, monkeypatch, f"'{partial}'")
    assert version == "1.2.3 dynamic"
    assert not native.compiling().is_static(str(made))


def test_compiler_that_ignores_what_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a dynamic program although a static one was asked for."""
    compilers()
    partial = tmp_path / "cc"
    partial.write_text(
        '#!/bin/sh\nfor word; do shift; case $word in -static*) ;; *) set -- "$@" "$word" ;; esac; done\nexec cc "$@"\n'
    )
    partial.chmod(0o700)
    _, version = compiled(tmp_path, monkeypatch, str(partial))
    assert version == "1.2.3 dynamic"


def test_without_a_compiler_there_is_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile` raises nothing, and rejects programs that do not run."""
    script = native.compiling()
    made = tmp_path / "made"
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho nonsense > "$2"\n')
    broken.chmod(0o700)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert not script.compile(str(made), "1")
    monkeypatch.setenv("CC", str(broken))
    assert not script.compile(str(made), "1")
    monkeypatch.setenv("CC", "/no/such/compiler --flag")
    assert not script.compile(str(made), "1")


def warnings_of(compiler: str, directory: Path, *flags: str) -> str:
    script = native.compiling()
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", *script.HARDENING, *script.WARNINGS, *flags]
    done = subprocess.run(
        [*command, '-DFLUXBUDGET_VERSION="x"', "-o", str(directory / "made"), *script.sources()],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_compilers_print_no_warnings(tmp_path: Path) -> None:
    for compiler in compilers():
        assert warnings_of(compiler, tmp_path) == "", compiler


@needs("cppcheck")
def test_cppcheck_finds_nothing() -> None:
    flags = ["--std=c11", "-D_GNU_SOURCE", "-DFLUXBUDGET_VERSION=x"]
    done = subprocess.run(
        ["cppcheck", *CHECKS, *flags, *native.compiling().sources()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs("gcc")
def test_analyzer_of_gcc_finds_nothing(tmp_path: Path) -> None:
    assert warnings_of("gcc", tmp_path, "-fanalyzer") == ""
