"""Which file systems may hang."""

from pathlib import Path

import pytest

from fluxbudgetd.sources.file_systems import may_hang

MOUNTS = r"""
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
40 21 0:40 / /home/me/far\040away rw - fuse.sshfs me@host: rw
41 21 0:41 / /net rw - autofs systemd-1 rw
42 41 0:42 / /net/work rw,noatime shared:9 master:1 - nfs4 server:/work rw,vers=4.2
43 42 0:43 / /net/work/cache rw - tmpfs tmpfs rw
44 21 8:2 / /twice rw - nfs server:/ rw
45 44 8:3 / /twice rw - xfs /dev/sdb1 rw
""".lstrip()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", False),
        ("/srv/p/.clavain/intercore.db", False),
        ("/home/me/far away/p/.clavain/intercore.db", True),
        ("/home/me/far away", True),
        ("/home/me/far away2/p", False),
        ("/net/other", True),
        ("/net/work/p", True),
        ("/net/work/cache/p", False),
        ("/twice/p", False),
    ],
)
def test_file_system_of_a_path(tmp_path: Path, path: str, expected: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert may_hang(path, str(mounts)) is expected


def test_without_a_list_a_disk_is_local(tmp_path: Path) -> None:
    assert not may_hang("/p", str(tmp_path / "missing"))
