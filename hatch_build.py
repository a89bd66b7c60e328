"""Build hook: add the systemd units, the configuration template and the clients to the wheel.

`fluxbudgetctl-python` is a script that starts the Python client. `fluxbudgetctl` is the native client, which leaves
what it does not handle to that script; without a C compiler, it is a copy of the script. `FLUXBUDGET_NATIVE=0` leaves
out the native client; with `FLUXBUDGET_NATIVE=1`, the build fails if it cannot be compiled.
"""

import os
import runpy
import shutil
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_NAME = "fluxbudgetctl"
_SETTING = "FLUXBUDGET_NATIVE"
#: Files that the installed programs read, and their paths in the wheel.
_DATA = {"systemd": f"{_NAME}/systemd", "config/fluxbudget.toml": "fluxbudgetd/config/fluxbudget.toml"}

# A static program needs no libc, only a kernel. manylinux_2_17 is the oldest tag that promises one new enough (CentOS 7
# has Linux 3.10): programs linked with a current static glibc refuse to start before Linux 3.2, and the distributions
# of the older manylinux tags have 2.6. musllinux_1_1 is the oldest musl tag, and none promises a kernel version.
_STATIC_TAGS = ("manylinux_2_17", "musllinux_1_1")

# A shell script. Installers rewrite scripts that start with `#!python`, and pip's result does not run if the path is
# long or has a space.
_SCRIPT = "client/script/python-client.sh"


class Client(BuildHookInterface[Any]):
    """Add `fluxbudgetctl` to every wheel, editable ones included; the sdist contains its sources instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the client. Aborts the build if `$FLUXBUDGET_NATIVE` is invalid or cannot be honoured."""
        if version == "standard":  # an editable install reads both from the source tree
            for source, target in _DATA.items():
                build_data["force_include"][os.path.join(self.root, source)] = target
        setting = os.environ.get(_SETTING, "")
        if setting not in {"", "0", "1"}:
            self.app.abort(f"fluxbudget: {_SETTING} is {setting!r}: 0 leaves out the native client, 1 requires it")
        self._directory = tempfile.TemporaryDirectory(prefix="fluxbudget-")
        program = os.path.join(self._directory.name, _NAME)
        native = runpy.run_path(os.path.join(self.root, "client", "native", "compile.py"))
        is_wanted = setting != "0" and sys.platform == "linux"
        if is_wanted and native["compile"](program, self.metadata.version):
            build_data["pure_python"] = False
            platform = _platform(is_static=native["is_static"](program))
            build_data["tag"] = f"py3-none-{platform}"  # a program runs beside any Python
        elif setting == "1":
            self.app.abort(f"fluxbudget: {_SETTING}=1, but {self._why_not()}")
        else:
            if setting != "0":
                self.app.display_warning(f"fluxbudget: {self._why_not()}; fluxbudgetctl is the Python client")
            shutil.copyfile(os.path.join(self.root, _SCRIPT), program)
        os.chmod(program, 0o755)  # noqa: S103  a program, for every user of the machine
        build_data["shared_scripts"][program] = _NAME
        build_data["shared_scripts"][os.path.join(self.root, _SCRIPT)] = f"{_NAME}-python"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the built client; the wheel contains a copy."""
        self._directory.cleanup()

    def _why_not(self) -> str:
        if os.statvfs(self._directory.name).f_flag & os.ST_NOEXEC:
            return f"programs in {tempfile.gettempdir()} cannot be executed (noexec): set TMPDIR to another directory"
        return "no working C compiler was found"


def _platform(*, is_static: bool) -> str:
    """Return the platform part of the wheel's tag, which lists every platform that the client runs on.

    A dynamic program gets the tag that promises nothing about other machines. So does a static one on a platform that
    has no manylinux or musllinux tags: installers here would refuse the wheel.
    """
    here = list(platform_tags())
    linux = next(tag for tag in here if tag.startswith("linux_"))
    machine = linux.removeprefix("linux_")
    static = [f"{tag}_{machine}" for tag in _STATIC_TAGS]
    return ".".join(static) if is_static and not set(static).isdisjoint(here) else linux
