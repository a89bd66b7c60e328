"""Commands in a mount namespace of their own."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

_APART = ("unshare", "--mount")
_ALONE = 'mount -t tmpfs -o "$0" none "$1" && shift && exec "$@"'


def with_empty(directory: str, *, options: str = "mode=1777") -> tuple[str, ...]:
    """Return a command prefix under which this directory is an empty file system, mounted with these options."""
    return (*_APART, "sh", "-c", _ALONE, options, directory)


@cache
def why_not() -> str:
    """Return why root cannot mount anything here, or an empty string."""
    tried = subprocess.run([*with_empty("/proc"), "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


@cache
def why_no_whole_seconds() -> str:
    """Return why no file system that keeps times in whole seconds can be mounted here, or an empty string."""
    try:
        ended = subprocess.run(["mke2fs", "-V"], capture_output=True, check=False)
    except FileNotFoundError:
        return "mke2fs is missing"
    tried = subprocess.run([*_APART, "sh", "-c", "losetup --find"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if ended.returncode or tried.returncode else ""


def run_on_whole_seconds(scratch: Path, script: str) -> None:
    """Run a Python script that must succeed, with a directory whose file system keeps times in whole seconds."""
    image, mounted = scratch / "image", scratch / "mounted"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    mounted.mkdir()
    # Inodes of 128 bytes have no room for fractions of a second.
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-I", "128", str(image)], check=True, capture_output=True)
    command = 'mount -o loop "$0" "$1" && exec "$2" -c "$3" "$1"'
    ended = subprocess.run(
        [*_APART, "sh", "-c", command, str(image), str(mounted), sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
