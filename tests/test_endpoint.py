"""The socket, its lock and the state files are restored if removed; the lock file says where the daemon listens."""

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from fluxbudgetd.server.endpoint import Endpoint
from fluxbudgetd.server.listener import bind
from fluxbudgetd.server.locking import Note
from fluxbudgetd.server.server import Server
from fluxbudgetd.wire import messages
from harness.activation import activation
from harness.daemon import DAEMON, PATIENCE, Daemon, Home, Wire, killed, started, wait_for
from harness.events import read_state_file
from harness.privilege import needs_root
from harness.suspend import suspend

PONG = messages.PingAnswer(version="1", protocol=1, pid=1, started_at="")


def lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def is_answered(path: Path) -> bool:
    try:
        with Wire(path) as wire:
            return isinstance(wire.ask(messages.Ping()), messages.PingAnswer)
    except (OSError, EOFError):
        return False


def findings(wire: Wire) -> str:
    """Return what `doctor` reports on a connection that is already open."""
    answer = wire.ask(messages.Doctor(wait_ms=int(PATIENCE * 1000)))
    assert isinstance(answer, messages.DoctorAnswer)
    return "\n".join(f"{finding.what} ({finding.hint})" for finding in answer.findings)


def refused_start(home: Home, *arguments: str) -> str:
    """Start a daemon that must refuse to serve; return its log."""
    daemon = home.start(*arguments, wait=False)
    assert daemon.process.wait(timeout=PATIENCE) == 1
    return daemon.log


def test_removed_socket_is_bound_again(home: Home, daemon: Daemon) -> None:
    """The same process binds it, and open connections survive."""
    with Wire(home.socket) as wire:
        before = wire.ask(messages.Ping())
        for _ in range(2):
            home.socket.unlink()
            wait_for(lambda: is_answered(home.socket), "the socket to be served again")
        assert wire.ask(messages.Ping()) == before
        assert home.ask(messages.Ping()) == before
    assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
    assert daemon.stop() == 0
    assert not home.socket.exists()


#: Runs a command in a user namespace that has no inotify instances left.
WITHOUT_INOTIFY = (
    *("unshare", "--user", "--map-root-user", "sh", "-c"),
    *('echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"', "sh"),
)


def no_user_namespace() -> str:
    """Return why a command cannot run without inotify here, or an empty string."""
    return subprocess.run([*WITHOUT_INOTIFY, "true"], capture_output=True, text=True, check=False).stderr


@needs_root("make a user namespace", no_user_namespace)
def test_removed_socket_is_bound_again_without_inotify(home: Home) -> None:
    """The daemon then checks every few seconds."""
    home.start(prefix=WITHOUT_INOTIFY)
    home.socket.unlink()
    wait_for(lambda: is_answered(home.socket), "the socket to be served again")


def test_renamed_directory_is_created_again(home: Home, daemon: Daemon) -> None:
    home.socket.parent.rename(home.root / "away")
    wait_for(lambda: is_answered(home.socket), "the socket to be served again")
    assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700


def test_everything_in_a_removed_runtime_directory_comes_back(home: Home, daemon: Daemon) -> None:
    """The daemon waits until the runtime directory exists again; it does not create that one."""
    run = started(home, id="r1", session="s1", token_budget=1000)
    wait_for(lambda: read_state_file(home, "sessions", "s1"), "the state file")
    with Wire(home.socket) as wire:
        shutil.rmtree(home.socket.parent.parent)
        wait_for(lambda: "was removed (the socket is bound again when" in findings(wire), "doctor to report it")
        assert not home.socket.parent.parent.exists()
        home.socket.parent.parent.mkdir(mode=0o700)
        wait_for(lambda: is_answered(home.socket), "the socket to be served again")
        assert "was removed" not in findings(wire)
        assert wire.ask(messages.Remaining(run=run, wait_ms=30_000)) == home.ask(
            messages.Remaining(run=run, wait_ms=30_000)
        )
    wait_for(lambda: read_state_file(home, "sessions", "s1"), "the state file")
    assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700
    assert "is served by fluxbudgetd pid" in refused_start(home, "--state-dir", str(home.root / "another"))


@pytest.mark.parametrize(("kind", "fault"), [("public", "is writable by others"), ("symlink", "is a symlink")])
def test_socket_is_not_bound_in_a_directory_that_is_not_private(
    home: Home, daemon: Daemon, kind: str, fault: str
) -> None:
    """Another user may have created it after fluxbudget's own was removed."""
    directory, public = home.socket.parent, home.root / "public"
    public.mkdir()
    public.chmod(0o777)
    with Wire(home.socket) as wire:
        # The daemon must not see a moment without the directory.
        suspend(daemon.process.pid)
        directory.rename(home.root / "away")
        if kind == "symlink":
            directory.symlink_to(public)
        else:
            public.rename(directory)
        daemon.signal(signal.SIGCONT)
        wait_for(lambda: fault in findings(wire), "doctor to report it")
        assert not home.socket.exists()
        directory.rename(home.root / "public-again")
        wait_for(lambda: is_answered(home.socket), "the socket to be served again")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_directory_that_the_user_opens_to_others_stays_in_use(home: Home) -> None:
    """It does so as long as nothing in it is missing."""
    place = home.root / "chosen" / "s.sock"
    home.start("--socket", str(place))
    with Wire(place) as wire:
        place.parent.chmod(0o770)
        shutil.rmtree(place.parent / "state")
        wait_for((place.parent / "state").exists, "the state files")
        assert "is writable by others" not in findings(wire)
    assert is_answered(place)


def test_directory_that_is_a_symlink_is_refused(home: Home) -> None:
    (home.root / "elsewhere").mkdir(mode=0o700)
    home.socket.parent.parent.mkdir(mode=0o700)
    home.socket.parent.symlink_to(home.root / "elsewhere")
    assert "is a symlink" in refused_start(home)


def test_socket_is_bound_again_once_a_descriptor_is_free(home: Home, daemon: Daemon) -> None:
    """Without a free descriptor, the daemon continues and tries again."""
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    with Wire(home.socket) as wire:
        wire.ask(messages.Ping())
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        home.socket.unlink()
        wait_for(lambda: "clients cannot connect" in daemon.log, "the daemon to try")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limits)
        wait_for(lambda: is_answered(home.socket), "the socket to be served again")
        assert wire.ask(messages.Ping()) == home.ask(messages.Ping())


def test_removed_state_files_come_back_without_a_change(home: Home, daemon: Daemon) -> None:
    started(home, id="r1", session="s1", token_budget=1000)
    wait_for(lambda: read_state_file(home, "sessions", "s1"), "the state file")
    shutil.rmtree(home.socket.parent / "state")
    wait_for(lambda: read_state_file(home, "sessions", "s1"), "the state file to come back")


def test_removed_lock_is_taken_again(home: Home, daemon: Daemon) -> None:
    lock_of(home.socket).unlink()
    wait_for(lambda: lock_of(home.socket).exists(), "the lock file")
    assert "is served by fluxbudgetd pid" in refused_start(home, "--state-dir", str(home.root / "another"))


def test_another_daemon_that_has_taken_the_place_keeps_it(home: Home, daemon: Daemon) -> None:
    """The first daemon still serves its open connections, and takes the path again when the other one stops."""
    with Wire(home.socket) as wire:
        first = wire.ask(messages.Ping())
        suspend(daemon.process.pid)
        shutil.rmtree(home.socket.parent)
        other = home.start("--state-dir", str(home.root / "another"))
        daemon.signal(signal.SIGCONT)
        served = f"is served by fluxbudgetd pid {other.process.pid}, which listens at {home.socket}"
        wait_for(lambda: served in findings(wire), "doctor to report it")
        assert home.ask(messages.Ping()) != first
        assert other.stop() == 0
        wait_for(lambda: is_answered(home.socket), "the socket to be served again")
        assert home.ask(messages.Ping()) == first


def test_passed_socket_is_not_bound_again(home: Home) -> None:
    """It belongs to systemd. The lock and the state files are the daemon's own, and are restored."""
    daemon = home.start(prefix=activation(home.socket))
    started(home, id="r1", session="s1", token_budget=1000)
    wait_for(lambda: read_state_file(home, "sessions", "s1"), "the state file")
    with Wire(home.socket) as wire:
        shutil.rmtree(home.socket.parent)
        wait_for(lambda: "restart fluxbudgetd.socket" in findings(wire), "doctor to report it")
        wait_for(lambda: lock_of(home.socket).exists(), "the lock file")
        assert not home.socket.exists()
    assert daemon.stop() == 0


def test_lock_says_who_serves_and_where(home: Home, daemon: Daemon) -> None:
    lines = f"fluxbudgetd pid {daemon.process.pid}\nsocket {home.socket}\n"
    assert lock_of(home.socket).read_text() == (home.state / "fluxbudgetd.lock").read_text() == lines
    log = refused_start(home, "--socket", str(home.root / "other" / "s"))
    assert f"is served by fluxbudgetd pid {daemon.process.pid}, which listens at {home.socket} (lock " in log


def test_client_reports_a_daemon_whose_socket_was_removed(home: Home, daemon: Daemon) -> None:
    suspend(daemon.process.pid)
    home.socket.unlink()
    result = home.ctl("doctor")
    daemon.signal(signal.SIGCONT)
    assert result.returncode == 1
    assert (
        f"fluxbudgetd (pid {daemon.process.pid}) is running, but its socket {home.socket} was removed" in result.stdout
    )
    wait_for(lambda: is_answered(home.socket), "the socket to be served again")
    assert "was removed" not in home.ctl("doctor").stdout


@contextmanager
def listening_elsewhere(home: Home, *arguments: str) -> Iterator[Path]:
    """Run a daemon at another path than the default; yield the path."""
    elsewhere = home.root / "elsewhere" / "s.sock"
    command = [*DAEMON, "--socket", str(elsewhere), *arguments]
    with killed(subprocess.Popen(command, env=home.environ, stderr=subprocess.DEVNULL)) as process:
        wait_for(lambda: is_answered(elsewhere), "the daemon")
        yield elsewhere
        process.terminate()
        assert process.wait(timeout=PATIENCE) == 0


def test_default_place_says_where_the_daemon_listens(home: Home) -> None:
    """The user's own daemon leaves a note there. Another daemon can still serve at the default place."""
    home.socket.parent.parent.mkdir(mode=0o700)
    note = lock_of(home.socket)
    with listening_elsewhere(home) as elsewhere:
        assert note.read_text().splitlines()[1] == f"socket {elsewhere}"
        home.start()
        assert note.read_text().splitlines()[1] == f"socket {home.socket}"
    assert note.read_text().splitlines()[1] == f"socket {home.socket}"


def test_note_at_the_default_place_is_removed(home: Home) -> None:
    home.socket.parent.parent.mkdir(mode=0o700)
    with listening_elsewhere(home):
        assert lock_of(home.socket).read_text()
    assert lock_of(home.socket).read_text() == ""


def test_note_is_not_written_again_without_a_change(tmp_path: Path) -> None:
    """Otherwise a daemon that is starting there could find the lock taken."""
    path = tmp_path / "run" / "s.lock"
    note = Note(str(path), "/elsewhere")
    note.leave()
    before = path.read_text()
    os.utime(path, (0, 0))
    note.leave()
    assert (path.read_text(), path.stat().st_mtime) == (before, 0)
    note.remove()
    assert path.read_text() == ""


def test_daemon_with_a_state_of_its_own_leaves_no_note(home: Home) -> None:
    home.socket.parent.parent.mkdir(mode=0o700)
    with listening_elsewhere(home, "--state-dir", str(home.root / "another")):
        assert not home.socket.parent.exists()


def test_connections_in_the_old_sockets_queue_are_served(tmp_path: Path) -> None:
    """When the server moves to another socket, it first accepts what is in the old one's queue."""

    async def body() -> None:
        server = Server(lambda _request, _pid: PONG)
        with listening_at(tmp_path / "old") as old, listening_at(tmp_path / "new") as new:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve, old)
                await anyio.wait_all_tasks_blocked()
                with Wire(tmp_path / "old") as early, Wire(tmp_path / "new") as late:
                    server.move_to(new)
                    old.close()
                    for wire in (early, late):
                        assert await anyio.to_thread.run_sync(wire.ask, messages.Ping()) == PONG
                tasks.cancel_scope.cancel()

    anyio.run(body)


def test_directory_that_was_removed_before_it_was_watched_is_noticed(tmp_path: Path) -> None:
    """For example, the state files' directory is removed while the daemon starts."""

    async def body() -> None:
        endpoint = Endpoint(
            str(tmp_path / "run" / "s"), directory_is_ours=True, beside=(str(tmp_path / "run" / "state"),)
        )
        noticed = anyio.Event()
        with endpoint.locked(), endpoint.bound():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(endpoint.keep, lambda _new: None, noticed.set)
                with anyio.fail_after(PATIENCE):
                    await noticed.wait()
                tasks.cancel_scope.cancel()

    anyio.run(body)


def test_socket_of_another_process_stays_although_it_has_the_same_inode(tmp_path: Path) -> None:
    """File systems use the number of a removed file again."""
    path = tmp_path / "s"
    listener = bind(str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        found = path.lstat()
        listener._replace(identity=(found.st_dev, found.st_ino)).close()
        assert path.exists()


def listening_at(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    listening.setblocking(False)
    return listening
