"""Installing: real wheels, with and without a C compiler, each in its own environment."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from packaging.tags import platform_tags
from packaging.utils import parse_wheel_filename

import fluxbudgetctl.main
from fluxbudgetd import __version__
from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home
from harness.false_daemon import answering, frame, refused, replied
from harness.mounts import why_not, with_empty
from harness.privilege import needs_root

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "config" / "fluxbudget.toml"
MACHINE = next(tag for tag in platform_tags() if tag.startswith("linux_")).removeprefix("linux_")
STATIC = {f"manylinux_2_17_{MACHINE}", f"musllinux_1_1_{MACHINE}"}
DYNAMIC = {f"linux_{MACHINE}"}
#: A $PATH without programs, so without a C compiler.
NO_COMPILER = {"PATH": "/nowhere"}
NO_NATIVE = {"FLUXBUDGET_NATIVE": "0"}

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="needs a C compiler (apt-get install gcc)",
)


def build(
    target: str,
    into: Path,
    source: Path = ROOT,
    environ: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Build an sdist or a wheel as installers do, but without build isolation, which would need downloads."""
    kept = {name: value for name, value in os.environ.items() if name not in {"CC", "FLUXBUDGET_NATIVE"}}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into],
        cwd=source,
        env={**kept, **(environ or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def built(target: str, into: Path, source: Path = ROOT, environ: Mapping[str, str] | None = None) -> Path:
    """Return the only file that was built."""
    result = build(target, into, source, environ)
    assert result.returncode == 0, result
    (made,) = into.iterdir()
    return made


def platforms(wheel: Path) -> set[str]:
    """Return the platforms that the wheel's name lists."""
    return {tag.platform for tag in parse_wheel_filename(wheel.name)[3]}


def is_static(program: Path) -> bool:
    """Return True if readelf finds no interpreter and no shared library in the program."""
    shown = subprocess.run(["readelf", "-ld", program], capture_output=True, text=True, check=True).stdout
    return "INTERP" not in shown and "(NEEDED)" not in shown


class Environment:
    """A virtual environment with fluxbudget's dependencies and an installed fluxbudget."""

    def __init__(self, place: Path, home: Home, *what: str | Path, environ: Mapping[str, str] | None = None) -> None:
        venv.create(place, symlinks=True)
        self.scripts = place / "bin"
        site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
        # Its .pth files are not read, so an editable fluxbudget beside the dependencies is not found.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        self._environ = {name: value for name, value in home.environ.items() if name != "PYTHONPATH"}
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.scripts / "python")]
        quick = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile"]
        builds = {**self._environ, **(environ or {})}
        if what:
            subprocess.run([*pip, "install", *quick, *what], env=builds, capture_output=True, text=True, check=True)

    def daemon(self, *arguments: str) -> str:
        """Return what fluxbudgetd prints."""
        done = subprocess.run(
            [self.scripts / "python", "-m", "fluxbudgetd", *arguments],
            env=self._environ,
            cwd=self.scripts,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def ctl(
        self,
        *arguments: str,
        program: Path | None = None,
        prefix: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the client by its own name or by a link; `prefix` is a command that starts it."""
        return subprocess.run(
            [*prefix, program or self.scripts / "fluxbudgetctl", *arguments],
            env={**self._environ, **(environ or {})},
            cwd=self.scripts,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.mark.parametrize(
    ("environ", "kind", "warned"),
    [
        pytest.param({}, "native", False, marks=needs_compiler, id="compiler"),
        pytest.param(NO_COMPILER, "script", True, id="no compiler"),
        pytest.param(NO_NATIVE, "script", False, id="switched off"),
    ],
)
def test_wheel(tmp_path: Path, home: Home, environ: Mapping[str, str], kind: str, warned: bool) -> None:
    """The client is native if a compiler works and the user wants it. The wheel's tag names this platform or any."""
    result = build("wheel", tmp_path / "dist", environ=environ)
    assert ("no working C compiler was found" in result.stdout + result.stderr) == warned, result
    (wheel,) = (tmp_path / "dist").iterdir()
    pure = kind == "script"
    with zipfile.ZipFile(wheel) as content:
        scripts = [entry for entry in content.infolist() if ".data/" in entry.filename]
        script, beside = sorted(scripts, key=lambda entry: entry.filename)
        assert script.filename == f"fluxbudget-{__version__}.data/scripts/fluxbudgetctl"
        assert beside.filename == f"fluxbudget-{__version__}.data/scripts/fluxbudgetctl-python"
        assert script.external_attr >> 16 == beside.external_attr >> 16 == 0o100755
        assert content.read(beside).startswith(b"#!/bin/sh\n")
        assert content.read(script).startswith(b"#!/bin/sh\n" if pure else b"\x7fELF")
        if pure:
            assert wheel.name == f"fluxbudget-{__version__}-py3-none-any.whl"
        else:
            program = Path(content.extract(script, tmp_path / "extracted"))
            assert platforms(wheel) == (STATIC if is_static(program) else DYNAMIC)
        about = content.read(f"fluxbudget-{__version__}.dist-info/WHEEL").decode()
        assert f"Root-Is-Purelib: {'true' if pure else 'false'}\n" in about
        tags = {line.removeprefix("Tag: ") for line in about.splitlines() if line.startswith("Tag: ")}
        assert tags == set(map(str, parse_wheel_filename(wheel.name)[3]))
    # The path has a space, which would not work in the first line of a script.
    installed = Environment(tmp_path / "with space", home, wheel)
    clean_client(installed, kind)
    assert installed.daemon("--print-config") == TEMPLATE.read_text()
    for name in ("fluxbudgetctl", "fluxbudgetctl-python"):  # pipx and uv make such links
        link = tmp_path / name
        link.symlink_to(installed.scripts / name)
        settings = json.loads(installed.ctl("hook", "--print-settings", program=link).stdout)
        assert settings["statusLine"]["command"] == f"'{installed.scripts.resolve()}/fluxbudgetctl' statusline"


@needs_compiler
def test_wheel_with_a_static_client_installs_on_glibc_and_on_musl(tmp_path: Path) -> None:
    wheel = built("wheel", tmp_path / "dist")
    with zipfile.ZipFile(wheel) as content:
        program = content.extract(f"fluxbudget-{__version__}.data/scripts/fluxbudgetctl", tmp_path / "extracted")
    if not is_static(Path(program)):
        pytest.skip("the C library here has no static version (on Debian: apt-get install libc6-dev)")
    for platform in STATIC:
        target = tmp_path / platform
        wanted = ["--platform", platform, "--only-binary", ":all:", "--no-deps", "--no-index"]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        subprocess.run([*pip, *wanted, "--target", target, wheel], capture_output=True, text=True, check=True)
        assert (target / "bin" / "fluxbudgetctl").read_bytes().startswith(b"\x7fELF")


@needs_compiler
def test_wheel_with_a_dynamic_client_is_for_machines_like_this_one(tmp_path: Path) -> None:
    """Here the compiler cannot link statically."""
    compiler = tmp_path / "cc"
    real = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    compiler.write_text(f'#!/bin/sh\ncase " $* " in *" -static"*) exit 1 ;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    wheel = built("wheel", tmp_path / "dist", environ={"CC": f"'{compiler}'"})
    assert platforms(wheel) == DYNAMIC


@pytest.fixture
def script(tmp_path: Path, home: Home) -> Environment:
    """An environment in which `fluxbudgetctl` is the script, too."""
    return Environment(tmp_path / "venv", home, built("wheel", tmp_path / "dist", environ=NO_NATIVE))


def test_script_finds_itself_without_a_slash_in_its_name(script: Environment) -> None:
    """A shell looks in the working directory for a script, then in $PATH."""
    path = f"{script.scripts}:{os.environ['PATH']}"
    for shell, environ, place in (("sh", {}, "."), ("bash", {}, "."), ("bash", {"PATH": path}, "/")):
        line = ["sh", "-c", 'cd "$1" && exec "$2" fluxbudgetctl "$3"', "-", place, shell]
        for verb in ("ping", "version"):
            result = subprocess.run(
                [*line, verb],
                env={**os.environ, "FLUXBUDGET_SOCKET": "/no/such", **environ},
                cwd=script.scripts,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 69, (shell, place, result)
            assert result.stderr.startswith("fluxbudgetctl: no daemon at /no/such: ")


def test_script_uses_its_own_python_and_packages(script: Environment) -> None:
    site = Path(sysconfig.get_path("purelib", vars={"base": str(script.scripts.parent), "platbase": ""}))
    another = site.parents[1] / "python3.1" / "site-packages" / "fluxbudgetctl"
    another.mkdir(parents=True)
    for place in (another / "__init__.py", another / "main.py", site / "select.py"):
        place.write_text("raise SystemExit(99)\n")
    result = script.ctl("statusline", "--timeout", "20")
    assert result.returncode == 69, result


@pytest.mark.parametrize("verb", ["remaining", "hook"])
def test_hot_path_imports_next_to_nothing(script: Environment, home: Home, verb: str) -> None:
    """It does not import `os`, for example, which takes longer than all of our own modules."""
    site = Path(sysconfig.get_path("purelib", vars={"base": str(script.scripts.parent), "platbase": ""}))
    python = [str(script.scripts / "python"), "-I", "-S", "-X", "importtime"]

    def imported(*command: str) -> set[str]:
        done = subprocess.run(
            [*python, *command],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    with answering(home, replied("{}\n")):
        names = imported(str(site / "fluxbudgetctl" / "bare.py"), "-", verb, "--timeout", "20")
    others = {name for name in names - imported("-c", "pass") if not name.startswith("fluxbudget")}
    assert others <= {"_socket", "errno", "gc", "select", "time", "posix"}


def test_older_daemon_works_even_if_python_started_without_its_packages(script: Environment, home: Home) -> None:
    """This needs msgspec, which is not in the environment's own directory."""
    answer = frame(messages.PingAnswer(version="0.0.1", protocol=1, pid=4711, started_at="2026"))
    with answering(home, lambda request: refused("unknown_op") if request["op"] == "command" else answer):
        result = script.ctl("ping", "--timeout", "20")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("fluxbudgetd 0.0.1 (pid 4711) answered in ")


def test_script_reports_a_missing_package_and_a_missing_python(script: Environment) -> None:
    """The exit code has no other meaning. A hook stays silent."""
    site = Path(sysconfig.get_path("purelib", vars={"base": str(script.scripts.parent), "platbase": ""}))
    (site / "fluxbudgetctl").rename(site / "away")
    for what in ("No module named 'fluxbudgetctl'", f"{script.scripts}/python cannot be executed"):
        for program in ("fluxbudgetctl", "fluxbudgetctl-python"):
            for verb in ("ping", "status"):
                result = script.ctl(verb, program=script.scripts / program)
                assert (result.returncode, result.stdout) == (70, ""), result
                assert result.stderr == f"fluxbudgetctl: {what}\nhint: install fluxbudget again\n"
            result = script.ctl("hook", program=script.scripts / program)
            assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result
        (script.scripts / "python").unlink(missing_ok=True)


def interpreter_in(directory: Path) -> Path:
    """Return a program in a new directory that starts this Python, whose own path may have a space."""
    directory.mkdir()
    program = directory / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("plain", "#!{}\n# -*- coding: utf-8 -*-\n"),
        ("plain", "#!{} -sP\nimport sys\n"),
        ("plain", "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"\n' '''\n"),
        ("with space", "#!/bin/sh\n'''exec' \"{}\" \"$0\" \"$@\"\n' '''\n"),
        ("with space", "#!/bin/sh\n'''exec' '{}' \"$0\" \"$@\"\n' '''\n"),
    ],
    ids=["pip", "a distribution", "pip, long", "pip, with a space", "uv, with a space"],
)
def test_script_outside_an_environment_uses_the_python_of_a_generated_script(
    tmp_path: Path, home: Home, place: str, written: str
) -> None:
    """With `pip install --user`, for example, the programs are not beside the interpreter."""
    interpreter = interpreter_in(tmp_path / place)
    scripts = tmp_path / "bin"
    scripts.mkdir()
    generated = scripts / "fluxbudgetd"
    generated.write_text(written.format(interpreter) + "from fluxbudgetd.cli import main\n")
    script = shutil.copy(ROOT / "client" / "script" / "python-client.sh", scripts / "fluxbudgetctl-python")
    for verb in ("ping", "version"):
        result = subprocess.run([script, verb], env=home.environ, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr.count("\n")) == (69, 2), result
        assert result.stderr.startswith("fluxbudgetctl: no daemon at ")
    generated.unlink()
    result = subprocess.run([script, "status"], env=home.environ, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (70, "")
    missing = f"fluxbudgetctl: the Python in {generated} cannot be executed\n"
    assert result.stderr == f"{missing}hint: install fluxbudget again\n"


def test_script_accepts_a_directory_as_stdin(tmp_path: Path, home: Home) -> None:
    """Python does not start with one, and exits with a code that means something else here."""
    (tmp_path / "fluxbudgetd").write_text(f"#!{interpreter_in(tmp_path / 'plain')}\n")
    script = shutil.copy(ROOT / "client" / "script" / "python-client.sh", tmp_path / "fluxbudgetctl-python")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        for verb, code in (("hook", 0), ("ping", 69)):
            result = subprocess.run([script, verb], env=home.environ, stdin=directory, capture_output=True, check=False)
            assert (result.returncode, result.stdout) == (code, b""), result
    finally:
        os.close(directory)


@pytest.mark.parametrize("place", ["plain", "with space", "long" * 40])
def test_script_finds_the_python_of_what_pip_writes(tmp_path: Path, home: Home, place: str) -> None:
    """The programs are outside the environment of the Python that installs them."""
    wheel = built("wheel", tmp_path / "dist", environ=NO_NATIVE)
    python = Environment(tmp_path / place, home).scripts / "python"
    prefix = tmp_path / "prefix"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    quick = ["--no-index", "--no-deps", "--no-compile", "--prefix", str(prefix)]
    subprocess.run([*pip, "install", *quick, wheel], capture_output=True, text=True, check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(prefix), "platbase": str(prefix)})
    for program in ("fluxbudgetctl", "fluxbudgetctl-python"):
        result = subprocess.run(
            [prefix / "bin" / program, "version"],
            env={**home.environ, "PYTHONPATH": site},
            capture_output=True,
            text=True,
            check=False,
        )
        kind = "script" if program == "fluxbudgetctl" else "python"
        assert (result.returncode, result.stdout) == (69, f"fluxbudgetctl {__version__} ({kind})\n"), result


@needs_compiler
@needs_root("mount a file system", why_not)
def test_compiler_whose_programs_may_not_run(tmp_path: Path) -> None:
    """The message names the directory, because the compiler works."""
    made, temporary = tmp_path / "made", tmp_path / "temporary"
    temporary.mkdir()
    result = build(
        "wheel",
        made,
        environ={"TMPDIR": str(temporary), "FLUXBUDGET_NATIVE": "1"},
        prefix=with_empty(str(temporary), options="noexec"),
    )
    assert result.returncode == 1
    assert f"programs in {temporary} cannot be executed (noexec)" in result.stdout + result.stderr


def clean_client(installed: Environment, kind: str) -> None:
    """The client prints help and its version, and reports the missing daemon."""
    assert installed.ctl("--help").stdout.startswith("usage: fluxbudgetctl ")
    result = installed.ctl("version")
    shown = re.fullmatch(r"fluxbudgetctl (\S+) \((\w+)(, (musl|glibc static|dynamic))?\)\n", result.stdout)
    assert result.returncode == 69, result
    assert shown is not None, result
    assert shown.groups()[:2] == (__version__, kind)
    assert json.loads(installed.ctl("version", "--json").stdout)["client_kind"] == kind
    missed = "fluxbudgetctl: no daemon at "
    result = installed.ctl("ping")
    assert (result.returncode, result.stdout) == (69, ""), result
    assert result.stderr.startswith(missed)
    # With these, Python would not start and exit with 1, which means "refused", or stay interactive and exit with 0.
    for name in ("PYTHONHOME", "PYTHONINSPECT"):
        for verb in ("ping", "status"):
            result = installed.ctl(verb, environ={name: "/nowhere"})
            assert (result.returncode, result.stderr.startswith(missed)) == (69, True), result


@needs_compiler
def test_editable_install_has_the_native_client(tmp_path: Path, home: Home) -> None:
    installed = Environment(tmp_path / "venv", home, "--editable", ROOT)
    clean_client(installed, "native")
    assert installed.daemon("--print-config") == TEMPLATE.read_text()


def test_editable_install_without_a_compiler(tmp_path: Path, home: Home) -> None:
    """Its packages are not in site-packages."""
    clean_client(Environment(tmp_path / "venv", home, "--editable", ROOT, environ=NO_NATIVE), "script")


def test_wheel_of_the_sdist(tmp_path: Path) -> None:
    """The sdist has all sources of the wheel, including those of the native client."""
    subprocess.run(["tar", "-xf", built("sdist", tmp_path / "sdist")], cwd=tmp_path, check=True)
    made = built("wheel", tmp_path / "made", tmp_path / f"fluxbudget-{__version__}")
    expected = built("wheel", tmp_path / "expected")
    assert made.name == expected.name
    assert made.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**NO_COMPILER, "FLUXBUDGET_NATIVE": "1"}, "FLUXBUDGET_NATIVE=1, but no working C compiler was found"),
        ({"FLUXBUDGET_NATIVE": "yes"}, "FLUXBUDGET_NATIVE is 'yes'"),
    ],
)
def test_build_fails_if_the_requested_client_cannot_be_built(
    tmp_path: Path, environ: Mapping[str, str], message: str
) -> None:
    result = build("wheel", tmp_path, environ=environ)
    assert result.returncode == 1, result
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not list(tmp_path.iterdir())


def test_half_upgrade_is_reported(home: Home, daemon: Daemon) -> None:
    """A report appears only if the native client and the Python client have different versions."""
    line = f"the native client is version 0.0.9, the Python client {__version__}"
    other, same = {"FLUXBUDGETCTL_NATIVE": "0.0.9"}, {"FLUXBUDGETCTL_NATIVE": __version__}
    result = home.ctl("version", environ=other)
    assert result.stdout.startswith("fluxbudgetctl 0.0.9 (native)\n")
    assert (result.returncode, result.stderr) == (0, f"fluxbudgetctl: {line}\nhint: install fluxbudget again\n")
    result = home.ctl("version", environ=same)
    assert result.stdout.startswith(f"fluxbudgetctl {__version__} (native)\n")
    assert (result.returncode, result.stderr) == (0, "")
    result = home.ctl("doctor", "--json", environ=other)
    assert result.returncode == 1
    assert json.loads(result.stdout)["findings"] == [{"what": line, "hint": "install fluxbudget again"}]
    assert json.loads(home.ctl("doctor", "--json", environ=same).stdout)["ok"] is True


def test_native_version_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable does not reach programs that the client starts."""
    monkeypatch.setenv("FLUXBUDGETCTL_NATIVE", __version__)
    monkeypatch.setenv("FLUXBUDGETCTL_FAILED", "timeout")
    assert fluxbudgetctl.main.main(["--help"]) == 0
    assert not {"FLUXBUDGETCTL_NATIVE", "FLUXBUDGETCTL_FAILED"} & os.environ.keys()
