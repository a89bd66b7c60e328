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
case $self in */*) ;; *) if [ -f "./$self" ]; then self=./$self; else self=$(command -v -- "$self"); fi ;; esac
[ ! -L "$self" ] || self=$(readlink -f -- "$self")
here=${self%/*}
client=$here/fluxbudgetctl-python
# A Python that cannot start, or goes on after its end, has an exit code that means something else here.
unset PYTHONHOME PYTHONINSPECT
if [ ! -x "$client" ]; then
    [ "$1" != hook ] || exit 0
    echo "fluxbudgetctl: $client cannot be executed" >&2
    echo "hint: install fluxbudget again" >&2
    exit 70
fi
case $1 in remaining | env | check | ping | hook | statusline)
    # In an environment of its own it is known where the packages are. Python takes longer to find out than to answer.
    [ ! -f "$here/../pyvenv.cfg" ] || [ ! -x "$here/python" ] || exec "$here/python" -I -S -c 'import os, sys
del sys.argv[0]
place = os.path.dirname(sys.argv[0]) + "/../lib/python%d.%d/site-packages" % sys.version_info[:2]
if not os.path.isfile(place + "/fluxbudgetctl/main.py"):
    try:
        os.execv(sys.argv[0], sys.argv)
    except OSError as exc:
        if sys.argv[1] != "hook":
            print("fluxbudgetctl: %s: %s" % (sys.argv[0], exc.strerror), file=sys.stderr)
        sys.exit(0 if sys.argv[1] == "hook" else 70)
sys.path.append(place)
from fluxbudgetctl.main import bare
sys.exit(bare())' "$client" "$@"
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
            self.app.abort(f"fluxbudget: {_SETTING}=1, but {self._why_not()}")
        else:
            if setting != "0":
                self.app.display_warning(f"fluxbudget: {self._why_not()}; fluxbudgetctl is the Python client")
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

    def _why_not(self) -> str:
        if os.statvfs(self._made.name).f_flag & os.ST_NOEXEC:
            return f"what is compiled in {tempfile.gettempdir()} may not run (noexec): set TMPDIR to another directory"
        return "no C compiler here makes a program that runs"


def _platform() -> str:
    """Return the platform's part of the wheel's tag: the one without a promise about other machines."""
    return next(tag for tag in platform_tags() if tag.startswith("linux_"))
