"""Build hook: add the systemd units, the configuration template and `fluxbudgetctl` to the wheel.

`fluxbudgetctl` is the native client where a C compiler is available, else a short script. Both pass what they do not
handle themselves to `fluxbudgetctl-python` beside them, an ordinary console script. With `FLUXBUDGET_NATIVE=0` the
native client is left out; with `FLUXBUDGET_NATIVE=1` the build fails if it cannot be compiled.
"""

import os
import runpy
import struct
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

_NAME = "fluxbudgetctl"
_SETTING = "FLUXBUDGET_NATIVE"
#: Files that the installed programs read, and their places in the wheel.
_DATA = {"systemd": f"{_NAME}/systemd", "config/fluxbudget.toml": "fluxbudgetd/config/fluxbudget.toml"}

# A static program needs no libc, only a kernel. manylinux_2_17 is the oldest tag that promises one new enough (CentOS 7
# has Linux 3.10): programs linked with a current static glibc refuse to start before Linux 3.2, and the distributions
# of the older manylinux tags have 2.6. musllinux_1_1 is the oldest musl tag, and none promises a kernel version.
_STATIC_TAGS = ("manylinux_2_17", "musllinux_1_1")

# Numbers from elf(5).
_ELFCLASS64 = 2
_PT_INTERP = 3

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
    """Add `fluxbudgetctl` to every wheel, editable ones included; the sdist contains its sources instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the client. Aborts the build if `$FLUXBUDGET_NATIVE` is invalid or cannot be honoured."""
        if version == "standard":  # an editable install reads both from the source tree
            for source, target in _DATA.items():
                build_data["force_include"][os.path.join(self.root, source)] = target
        setting = os.environ.get(_SETTING, "")
        if setting not in {"", "0", "1"}:
            self.app.abort(f"fluxbudget: {_SETTING} is {setting!r}: 0 is without the native client, 1 only with it")
        self._made = tempfile.TemporaryDirectory(prefix="fluxbudget-")
        program = os.path.join(self._made.name, _NAME)
        if setting != "0" and self._compile(program):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform(program)}"  # a program runs beside any Python
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
        """Remove the built client; the wheel contains a copy."""
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


def _platform(program: str) -> str:
    """Return the platform part of the wheel's tag, which lists every platform that the program runs on.

    A dynamic program gets the tag that promises nothing about other machines. So does a static one on a platform that
    has no manylinux or musllinux tags: installers here would refuse the wheel.
    """
    here = list(platform_tags())
    linux = next(tag for tag in here if tag.startswith("linux_"))
    machine = linux.removeprefix("linux_")
    static = [f"{tag}_{machine}" for tag in _STATIC_TAGS]
    return ".".join(static) if _is_static(program) and not set(static).isdisjoint(here) else linux


def _is_static(program: str) -> bool:
    """Return True if the kernel starts this ELF program by itself, without a dynamic loader.

    Shared libraries are loaded by the program's interpreter (PT_INTERP), so a program that runs and has none needs no
    libraries. That includes static-pie programs, which have a dynamic section.
    """
    with open(program, "rb") as file:
        image = file.read()
    is_wide = image[4] == _ELFCLASS64
    # The offsets of e_phoff, e_phentsize and e_phnum in elf(5), in the byte order of this machine, which has run it.
    (table,) = struct.unpack_from("=Q" if is_wide else "=I", image, 32 if is_wide else 28)
    size, count = struct.unpack_from("=HH", image, 54 if is_wide else 42)
    kinds = [struct.unpack_from("=I", image, table + index * size)[0] for index in range(count)]
    return _PT_INTERP not in kinds
