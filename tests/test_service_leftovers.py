"""Which process holds the daemon's locks, and which files of a killed daemon are removed."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fluxbudgetctl.service import leftovers, locks
from harness.daemon import Home

#: Above the largest pid on Linux.
NO_PID = 1 << 22


@contextmanager
def other_process(open_file: Path | None = None) -> Iterator[int]:
    """Run a process outside the service that has a file open; yield its pid."""
    file = open_file or Path(os.devnull)
    with file.open("ab") as held, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=held) as process:
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


def test_holder_is_named_in_the_lock_file_and_has_it_open(tmp_path: Path) -> None:
    lock = tmp_path / "s.sock.lock"
    assert locks.holder(str(lock)) is None
    lock.touch()
    with other_process(lock) as pid:
        assert locks.holder(str(lock)) is None
        lock.write_text(f"fluxbudgetd pid {pid}\n")
        assert locks.holder(str(lock)) == pid
        assert locks.find_outside([str(tmp_path / "nothing"), str(lock)]) == pid
        (tmp_path / "link").symlink_to(lock)
        assert locks.holder(str(tmp_path / "link")) is None
    assert locks.holder(str(lock)) is None
    with other_process() as pid:  # a daemon had its pid before
        lock.write_text(f"fluxbudgetd pid {pid}\n")
        assert locks.holder(str(lock)) is None
    os.mkfifo(tmp_path / "fifo")
    assert locks.holder(str(tmp_path / "fifo")) is None


def test_process_that_has_ended_is_not_outside() -> None:
    assert locks.is_outside(os.getpid())
    assert not locks.is_outside(NO_PID)


def test_lock_files_of_a_daemon_are_read(home: Home) -> None:
    """Their names and contents are as the daemon writes them."""
    daemon = home.start()
    for lock in (locks.socket_lock(str(home.socket)), locks.state_lock(str(home.state))):
        assert locks.holder(lock) == daemon.process.pid


def test_files_of_a_killed_daemon_are_removed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = home.start()
    assert home.ctl("run", "start", "--session", "s").returncode == 0
    leftovers.remove_leftovers(str(home.socket))
    assert home.ctl("ping").returncode == 0
    daemon.process.kill()
    daemon.process.wait()
    assert (home.socket.parent / "state" / "alive").exists()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home.socket.parent.parent))
    leftovers.remove_leftovers(str(home.socket))
    assert not home.socket.parent.exists()


def test_other_files_are_kept(tmp_path: Path) -> None:
    """They stay in a directory that the user chose for the socket, whatever its name, and behind links."""
    place = tmp_path / "fluxbudget"
    for name in ("state/runs/mine", "state/precious.txt", "elsewhere/precious.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x")
    (place / "state" / "sessions").symlink_to(place / "elsewhere")
    (place / "s.sock").write_text("no socket")
    before = sorted(place.rglob("*"))
    leftovers.remove_leftovers(str(place / "s.sock"))
    assert sorted(place.rglob("*")) == before
    (place / "state" / "alive").touch()
    leftovers.remove_leftovers(str(place / "s.sock"))
    runs = place / "state" / "runs"
    assert set(place.rglob("*")) == set(before) - {
        runs,
        runs / "mine",
    }  # beside a daemon's `alive`, these files are the daemon's


def test_socket_with_a_daemon_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(str(path))
        serving.listen()
        leftovers.remove_leftovers(str(path))
        assert path.exists()
    leftovers.remove_leftovers(str(path))
    assert not path.exists()
