"""Which file systems may hang: those that depend on a server or on another program."""

import os

_MOUNTS = "/proc/self/mountinfo"
_REMOTE = frozenset(
    (
        *("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fuse", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "orangefs", "pvfs2", "smb3", "smbfs", "wekafs"),
    )
)
_FUSE, _LOCAL_FUSE = "fuse.", "fuse.fuse-overlayfs"


def may_hang(path: str, mounts: str = _MOUNTS) -> bool:
    """Return True if a real path, as the operating system takes it, is on a file system that may hang.

    Does not access the path. `mounts` is the file that lists the mounted file systems.
    """
    try:
        with open(mounts, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return False  # no /proc: the type is unknown, and most disks are local
    target, found, kind = os.fsencode(path), b"", b""
    for line in lines:
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw
        mount, _, source = line.partition(b" - ")
        point = _unescaped(mount.split(b" ")[4]).rstrip(b"/")
        # Of two file systems at the same mount point, the later one is visible.
        if len(point) >= len(found) and (target == point or target.startswith(point + b"/")):
            found, kind = point, source.split(b" ")[0]
    name = kind.decode()
    return name in _REMOTE or (name.startswith(_FUSE) and name != _LOCAL_FUSE)


def _unescaped(point: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        point = point.replace(code, char)
    return point
