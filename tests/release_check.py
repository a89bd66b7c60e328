"""`make release-check`: build the release artifacts into dist/ and check them as a user would get them.

The sdist must contain what is under version control, and the wheel built from it must equal the one built from the
tree. Each is installed in a fresh environment, where a daemon must answer its client. The SBOM lists what the wheel's
environment contains. The dependencies are those of the environment that runs this.
"""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name, parse_wheel_filename

from fluxbudgetd import __version__
from harness.daemon import wait_for
from harness.distributions import (
    differences,
    sbom_problems,
    sdist_files,
    sdist_problems,
    wheel_files,
    wheel_problems,
)

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
NAME = f"fluxbudget-{__version__}"
_BUDGET = "1000"


class ReleaseError(Exception):
    """The release is not fit to be published; the message says why."""


def main() -> int:
    """Build and check; return the exit code."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="fluxbudget-release-") as scratch:
            check(Path(scratch))
    except (ReleaseError, AssertionError) as exc:
        print(f"release-check: {exc}", file=sys.stderr)
        return 1
    for file in sorted(DIST.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size} bytes")
    print(f"{NAME} is fit for release ({time.monotonic() - started:.0f} s)")
    return 0


def check(scratch: Path) -> None:
    """Run every check. Raises `ReleaseError`."""
    shutil.rmtree(DIST, ignore_errors=True)
    # dist/ is only filled once everything has passed.
    passed = scratch / "dist"
    say("build the sdist, and wheels from it and from the tree")
    sdist = built("sdist", ROOT, passed)
    sources = sdist_files(sdist)
    refuse(sdist_problems(sources, tracked()))
    run(["tar", "-xf", sdist, "-C", scratch])
    wheel = built("wheel", scratch / NAME, passed)
    from_tree = built("wheel", ROOT, scratch / "from-tree")

    say("compare their contents")
    contents = wheel_files(wheel)
    refuse(wheel_problems(contents, sources))
    refuse(differences(wheel_files(from_tree), contents, "the wheel built from the sdist"))
    if from_tree.name != wheel.name:
        raise ReleaseError(f"the tree gives {from_tree.name}, the sdist {wheel.name}")
    if any(tag.platform.startswith("linux_") for tag in parse_wheel_filename(wheel.name)[3]):
        raise ReleaseError(f"{wheel.name} is for this machine only: its client is not static (on Debian: libc6-dev)")

    say("check the metadata")
    run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel])

    constraints = scratch / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in distributions(sys.path).items()))
    for what, file in (("wheel", wheel), ("sdist", sdist)):
        say(f"install the {what} and use it")
        environment = scratch / what
        install(file, environment, constraints)
        use(environment, scratch / f"{what}-home")

    say("write the SBOM")
    write_sbom(scratch / "wheel", passed / f"{NAME}.cdx.json", scratch)
    shutil.copytree(passed, DIST)


def say(text: str) -> None:
    """Print what comes next."""
    print(f"release-check: {text}", flush=True)


def refuse(problems: Sequence[str]) -> None:
    """Raise `ReleaseError` if there are problems."""
    if problems:
        raise ReleaseError("\n".join(problems))


def run(
    command: Sequence[str | Path],
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
) -> str:
    """Run a command and return its output. Raises `ReleaseError` with all of its output if it fails."""
    done = subprocess.run(
        command,
        env=dict(os.environ if environ is None else environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def built(target: str, source: Path, into: Path) -> Path:
    """Build an sdist or a wheel with the native client and return its path."""
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into]
    # SOURCE_DATE_EPOCH would only change the times in the archives; without it they are the same everywhere.
    kept = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    run(command, {**kept, "FLUXBUDGET_NATIVE": "1"}, source)
    pattern = "*.tar.gz" if target == "sdist" else "*.whl"
    (made,) = into.glob(pattern)
    return made


def tracked() -> list[str]:
    """Return the paths of the files under version control."""
    # Without this, git refuses a checkout that belongs to another user.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    return run(command).split("\0")[:-1]


def distributions(path: Sequence[str]) -> dict[str, str]:
    """Return the versions of the distributions on a module search path, by name, without fluxbudget itself."""
    found = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions(path=list(path))}
    return {name: found[name] for name in sorted(found) if name != "fluxbudget"}


def install(what: Path, environment: Path, constraints: Path) -> None:
    """Install a distribution, with its dependencies, in a fresh environment that contains nothing else."""
    venv.create(environment, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # An sdist is built as its users build it, in an environment that pip makes; newer pips constrain that separately.
    constrained = {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}
    environ = {**os.environ, **constrained, "FLUXBUDGET_NATIVE": "1"}
    run([*pip, "--python", environment / "bin" / "python", "install", "--no-compile", what], environ)


def use(environment: Path, home: Path) -> None:
    """Do what a new user does: configure, start the daemon and a run, ask what remains. Raises `ReleaseError`."""
    project, runtime, config = home / "project", home / "runtime", home / ".config" / "fluxbudget" / "config.toml"
    for directory in (project, runtime, config.parent):
        directory.mkdir(parents=True, mode=0o700)
    scripts = environment / "bin"
    environ = {"PATH": f"{scripts}:/usr/bin:/bin", "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}

    def said(*command: str) -> str:
        return run([scripts / command[0], *command[1:]], environ, project)

    expect("fluxbudgetd --version", said("fluxbudgetd", "--version"), f"fluxbudgetd {__version__}\n")
    config.write_text(said("fluxbudgetd", "--print-config"))
    expect("--check-config", said("fluxbudgetd", "--check-config").splitlines()[0], f"ok: {config}")
    log = home / "daemon.log"
    with log.open("wb") as file, subprocess.Popen([scripts / "fluxbudgetd"], env=environ, stderr=file) as daemon:
        try:
            wait_for(lambda: answers(daemon, log, [scripts / "fluxbudgetctl", "ping"], environ), "the daemon's answer")
            client, answering = said("fluxbudgetctl", "version").splitlines()
            expect("the client", client.partition(",")[0], f"fluxbudgetctl {__version__} (native")
            expect("the daemon", answering, f"fluxbudgetd {__version__} (pid {daemon.pid})")
            said("fluxbudgetctl", "run", "start", "--budget", _BUDGET)
            expect("remaining", said("fluxbudgetctl", "remaining"), f"{_BUDGET}\n")
        finally:
            daemon.send_signal(signal.SIGTERM)
    expect("the daemon's exit code", str(daemon.returncode), "0")


def answers(daemon: subprocess.Popen[bytes], log: Path, ping: Sequence[str | Path], environ: Mapping[str, str]) -> bool:
    """Return True if the daemon answers. Raises `ReleaseError` with its log if it has ended."""
    if daemon.poll() is not None:
        raise ReleaseError(f"the daemon ended with exit code {daemon.returncode}\n{log.read_text()}")
    return subprocess.run(ping, env=environ, capture_output=True, check=False).returncode == 0


def expect(what: str, found: str, expected: str) -> None:
    """Raise `ReleaseError` if something is not as expected."""
    if found != expected:
        raise ReleaseError(f"{what}: {found!r}, expected {expected!r}")


def write_sbom(environment: Path, path: Path, scratch: Path) -> None:
    """Write the CycloneDX SBOM of an environment, validated against its schema. Raises `ReleaseError`."""
    # The tool reads the version from a static pyproject.toml; ours is dynamic.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    static = scratch / "pyproject.toml"
    static.write_text(text.replace('dynamic = ["version"]', f'version = "{__version__}"'), encoding="utf-8")
    commit = run(["git", "-c", f"safe.directory={ROOT}", "log", "-1", "--format=%ct"]).strip()
    tool = [sys.executable, "-m", "cyclonedx_py", "environment", "--validate", "--output-reproducible"]
    output = ("--output-format", "JSON", "--output-file", path)
    environ = {**os.environ, "SOURCE_DATE_EPOCH": commit}
    run([*tool, *output, "--pyproject", static, environment / "bin" / "python"], environ)
    (site,) = environment.glob("lib/python*/site-packages")
    refuse(sbom_problems(path.read_bytes(), __version__, distributions([str(site)])))


if __name__ == "__main__":
    sys.exit(main())
