"""An environment with fluxbudget as an installer leaves it: scripts, metadata and record."""

import os
import shlex
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

import fluxbudgetctl
import fluxbudgetd

UNITS = ("fluxbudgetd.socket", "fluxbudgetd.service")
#: A version that differs from the one under test.
OTHER_VERSION = f"{fluxbudgetd.__version__}.post1"
_LEFT = (".local/state/fluxbudget", ".config/fluxbudget", ".interband", ".claude")
_NAMES = ("fluxbudgetd", "fluxbudgetctl")


class Installed:
    """A virtual environment with the tested packages. Only its metadata has the given version."""

    def __init__(self, root: Path, version: str = fluxbudgetd.__version__) -> None:
        self.root = root
        venv.create(root, symlinks=True)
        self.packages = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
        # The tested packages come before those of the environment that runs the tests.
        places = [_root_of(fluxbudgetd), _root_of(fluxbudgetctl), sysconfig.get_path("purelib")]
        (self.packages / "tested.pth").write_text("\n".join(dict.fromkeys(places)))
        for name in _NAMES:
            script = root / "bin" / name
            # (The `#!` line that installers write would not work if the path contains a quote.)
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(root / "bin" / "python"))} -m {name} "$@"\n')
            script.chmod(0o755)
        self.set_version(version)

    @property
    def daemon(self) -> Path:
        return self.root / "bin" / "fluxbudgetd"

    @property
    def client(self) -> Path:
        return self.root / "bin" / "fluxbudgetctl"

    def clean(self) -> None:
        """Remove everything it has installed, the state and the environment itself."""
        systemctl("unmask", *UNITS)
        systemctl("unmask", "--runtime", *UNITS)
        systemctl("disable", "--now", *UNITS)
        runtime = Path(os.environ["XDG_RUNTIME_DIR"], "fluxbudget")
        for place in (unit_directory().parent, runtime, *(Path.home() / name for name in _LEFT)):
            shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(self.root.parent)
        systemctl("daemon-reload")
        systemctl("reset-failed")

    def set_version(self, version: str) -> None:
        """Change the version in the metadata, as an upgrade does."""
        for old in self.packages.glob("fluxbudget-*.dist-info"):
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        made = self.packages / f"fluxbudget-{version}.dist-info"
        made.mkdir()
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fluxbudget\nVersion: {version}\n")
        bin_directory = os.path.relpath(self.root / "bin", self.packages)
        (made / "RECORD").write_text("".join(f"{bin_directory}/{name},,\n" for name in _NAMES))

    def ctl(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's client."""
        return self._run(arguments, environ, None)

    def ctl_in(self, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run this environment's client in a directory."""
        return self._run(arguments, {}, directory)

    def _run(
        self, arguments: Sequence[str], environ: Mapping[str, str], directory: Path | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.client, *arguments],
            env={**_outside_of_tests(), **environ},
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def ok(self, *arguments: str, **environ: str) -> str:
        """Run this environment's client, require exit 0, and return its output without the last newline."""
        ended = self.ctl(*arguments, **environ)
        assert ended.returncode == 0, (arguments, ended)
        return ended.stdout.rstrip("\n")


def systemctl(*arguments: str) -> str:
    """Run `systemctl --user`; return its output, whatever its exit code."""
    ended = subprocess.run(["systemctl", "--user", *arguments], capture_output=True, text=True, check=False)
    return ended.stdout.rstrip("\n")


def unit_directory() -> Path:
    return Path.home() / ".config" / "systemd" / "user"


def _outside_of_tests() -> dict[str, str]:
    kept = ("PATH", "LANG", "HOME", "USER", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _root_of(package: object) -> str:
    return str(Path(str(getattr(package, "__file__", ""))).parents[1])


__all__ = ["OTHER_VERSION", "UNITS", "Installed", "systemctl", "unit_directory"]
