"""Build hook: puts systemd's units into the wheel, and `fluxbudgetctl`: the native client where there is a C compiler.

Elsewhere that is a short script. Either hands what it does not do itself to `fluxbudgetctl-python` beside it, an
ordinary console script. `$FLUXBUDGET_NATIVE` decides: `0` is without the native client, `1` never without it; unset,
what can be had is taken.
"""

import os
import runpy
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_NAME = "fluxbudgetctl"
_SETTING = "FLUXBUDGET_NATIVE"

# Not `#!python`, which installers rewrite: what pip makes of it does not run when the path is long or has a space.
_SCRIPT = """\
#!/bin/sh
# Made without a C compiler: every verb is the Python client's, which lies beside this file (or the one it links to).
self=$0
[ ! -L "$self" ] || self=$(readlink -f -- "$self")
here=${self%/*}
client=$here/fluxbudgetctl-python
case $1 in remaining | env | check | ping | hook | statusline)
    # In an environment of its own it is known where the packages are. Python takes longer to find out than to answer.
    for packages in "$here"/../lib/python3.*/site-packages; do
        [ -f "$packages/fluxbudgetctl/main.py" ] && [ -f "$here/../pyvenv.cfg" ] || continue
        exec "$here/python" -I -S -c 'import sys
del sys.argv[0]
sys.path.insert(0, sys.argv.pop(1))
from fluxbudgetctl.main import bare
sys.exit(bare())' "$client" "$packages" "$@"
    done
esac
exec "$client" "$@"
"""


class Client(BuildHookInterface[Any]):
    """Puts `fluxbudgetctl` into a wheel, an editable one too; the sdist has the sources instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the client; ends the build when that is impossible, or not what was asked for."""
        if version == "standard":  # an editable install finds the units in the source tree
            build_data["force_include"][os.path.join(self.root, "systemd")] = f"{_NAME}/systemd"
        setting = os.environ.get(_SETTING, "")
        if setting not in {"", "0", "1"}:
            self.app.abort(f"fluxbudget: {_SETTING} is {setting!r}: 0 is without the native client, 1 only with it")
        self._made = tempfile.TemporaryDirectory(prefix="fluxbudget-")
        program = os.path.join(self._made.name, _NAME)
        if setting != "0" and self._compile(program):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"  # a program needs no certain Python
        elif setting == "1":
            self.app.abort(f"fluxbudget: {_SETTING}=1, but no C compiler here makes a program that runs")
        else:
            if setting != "0":
                self.app.display_warning("fluxbudget: no working C compiler; fluxbudgetctl is the Python client")
            with open(program, "w", encoding="utf-8") as file:
                file.write(_SCRIPT)
        os.chmod(program, 0o755)  # noqa: S103  a program, for everybody on the machine
        build_data["shared_scripts"][program] = _NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what the wheel now has a copy of."""
        self._made.cleanup()

    def _compile(self, output: str) -> bool:
        if sys.platform != "linux":
            return False
        found = runpy.run_path(os.path.join(self.root, "client", "native", "compile.py"))
        return bool(found["compile"](output, self.metadata.version))


def _platform() -> str:
    """Return the platform's part of the wheel's tag: the one without a promise about other machines."""
    return next(tag for tag in platform_tags() if tag.startswith("linux_"))
