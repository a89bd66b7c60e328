"""Starting, serving, stopping: locks, sockets, permissions, signals, peers."""

import contextlib
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.daemon import DAEMON, Daemon, Home, Wire, started, wait_for
from harness.descriptors import open_files
from harness.interstat import Interstat
from harness.privilege import needs_root

OTHER_USER = 65534


def failed_start(home: Home, *arguments: str) -> tuple[int, str]:
    daemon = home.start(*arguments, wait=False)
    code = daemon.process.wait(timeout=60)
    assert "Traceback" not in daemon.log
    return code, daemon.log


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_permissions_do_not_depend_on_the_umask(home: Home, umask: int) -> None:
    before = os.umask(umask)
    try:
        daemon = Daemon(home, (), ())
    finally:
        os.umask(before)
    home.root.joinpath("daemon-0.log").chmod(0o600)
    try:
        daemon.wait_until_ready()
        assert mode(home.socket) == 0o600
        assert mode(home.socket.parent) == 0o700
        assert mode(home.state) == 0o700
        assert started(home)
    finally:
        daemon.stop()


def test_permissions_of_our_directories_are_restored(home: Home) -> None:
    home.socket.parent.mkdir(parents=True, mode=0o755)
    home.start()
    assert mode(home.socket.parent) == 0o700


def test_world_writable_directory_is_refused(home: Home) -> None:
    home.socket.parent.mkdir(parents=True)
    home.socket.parent.chmod(0o777)
    code, log = failed_start(home)
    assert (code, "is writable by others" in log) == (1, True)


def test_second_daemon_names_the_running_one(home: Home, daemon: Daemon) -> None:
    code, log = failed_start(home, "--state-dir", str(home.root / "another"))
    assert code == 1
    assert f"is served by fluxbudgetd pid {daemon.process.pid}" in log
    assert "hint: " in log
    assert started(home)


def test_dead_socket_is_replaced(home: Home, daemon: Daemon) -> None:
    daemon.kill()
    assert home.socket.is_socket()
    assert home.ctl("ping").returncode == 69
    home.start()
    assert home.ctl("ping").returncode == 0


def test_live_socket_of_another_program_is_never_replaced(home: Home) -> None:
    home.socket.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home.socket))
        other.listen()
        inode = home.socket.stat().st_ino
        code, log = failed_start(home)
        assert (code, "is served by another process" in log) == (1, True)
        assert home.socket.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_other_files_are_never_replaced_by_the_socket(home: Home, kind: str) -> None:
    home.socket.parent.mkdir(parents=True, mode=0o700)
    precious = home.root / "precious"
    precious.write_text("precious")
    if kind == "file":
        home.socket.write_text("precious")
    elif kind == "directory":
        home.socket.mkdir()
    else:
        home.socket.symlink_to(precious)
    code, log = failed_start(home)
    assert (code, "is not a socket" in log) == (1, True)
    assert precious.read_text() == "precious"
    assert home.socket.is_symlink() == (kind == "symlink")
    assert home.socket.exists()


def test_socket_path_that_is_too_long_is_refused(home: Home) -> None:
    code, log = failed_start(home, "--socket", str(home.root / ("x" * 120) / "s"))
    assert (code, "the limit is 107" in log) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_daemon_cleanly(home: Home, interstat: Interstat, number: signal.Signals) -> None:
    """Exit code 0 and no socket file, even with an idle connection and an active run."""
    daemon = home.start()
    started(home, session="s1")
    with Wire(home.socket) as idle:
        idle.ask(messages.Ping())
        daemon.signal(number)
        assert daemon.process.wait(timeout=60) == 0
        assert idle.socket.recv(1) == b""
    assert not home.socket.exists()
    assert "stopped" in daemon.log


def test_stop_does_not_remove_another_daemons_socket(home: Home, daemon: Daemon) -> None:
    home.socket.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home.socket))
        other.listen()  # the daemon may replace a socket that no process serves
        assert daemon.stop() == 0
        assert home.socket.exists()


def test_stalled_log_reader_delays_no_request(home: Home, interstat: Interstat) -> None:
    """A full pipe (a pager, Ctrl-S) loses log lines, but the daemon answers and stops."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen(
        [*DAEMON, "--state-dir", str(home.state)], env=home.environ, stdin=subprocess.DEVNULL, stderr=writer
    )
    try:
        wait_for(lambda: home.ctl("ping").returncode == 0, "the daemon to answer")
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
        run = started(home, session="s1")
        interstat.insert("s1", input_tokens=5, output_tokens=0)
        assert home.spend(run).spent == 5
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
        os.close(reader)
        os.close(writer)


def held(daemon: Daemon, name: str) -> bool:
    """True if the daemon has a file of this name open."""
    return any(name in target for target in open_files(daemon.process.pid))


def test_hangup_reopens_the_sources(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert home.spend(run).spent == 5
    assert held(daemon, "metrics.db")

    def was_closed() -> bool:
        daemon.signal(signal.SIGHUP)
        # The watcher may open it again before this check; then the next signal closes it once more.
        return any(not held(daemon, "metrics.db") for _ in range(100))

    wait_for(was_closed, "the sources to be closed")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert (home.spend(run).spent, home.spend(run).stale) == (10, False)


def test_stop_waits_for_a_request_in_progress(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A change that waits for the ledger at SIGTERM is still made and answered."""
    started(home)
    ledger = sqlite3.connect(home.state / "ledger.db", isolation_level=None)
    ledger.execute("BEGIN IMMEDIATE")
    late = messages.RunStart(project_dir="/p", id="late", scope="b", session="s", wait_ms=30_000)
    with Wire(home.socket) as wire:
        wire.socket.sendall(encode_frame(messages.encode(late)))
        time.sleep(0.2)  # it waits for the ledger's lock
        daemon.signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in daemon.log, "the daemon to receive the signal")
        ledger.execute("COMMIT")
        answer = messages.decode_answer(wire.receive())
        assert isinstance(answer, messages.RunAnswer)
    ledger.close()
    assert daemon.process.wait(timeout=60) == 0
    home.start()
    assert "late" in {line["run"]["id"] for line in home.json("run", "list")["runs"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_start_ends_the_daemon_cleanly(home: Home, number: signal.Signals) -> None:
    """Once the socket file exists, a signal leaves no file and no traceback."""
    for _ in range(5):
        daemon = home.start(wait=False)
        wait_for(home.socket.exists, "the socket")
        daemon.signal(number)
        daemon.signal(number)
        assert daemon.process.wait(timeout=60) == 0
        assert not home.socket.exists()


def test_closed_log_reader_does_not_end_the_daemon(home: Home, interstat: Interstat) -> None:
    """A daemon whose stderr is closed, full or a broken pipe keeps serving."""
    reader, writer = os.pipe()
    for stderr in (subprocess.DEVNULL, os.open("/dev/full", os.O_WRONLY), writer):
        command = [*DAEMON, "--state-dir", str(home.state)]
        process = subprocess.Popen(command, env=home.environ, stdin=subprocess.DEVNULL, stderr=stderr)
        try:
            wait_for(lambda: home.ctl("ping").returncode == 0, "the daemon to answer")
            if stderr == writer:
                os.close(reader)
            run = started(home, session=f"s{stderr}")
            interstat.insert(f"s{stderr}", input_tokens=5, output_tokens=0)
            assert home.spend(run).spent == 5
            assert process.poll() is None
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0


def test_closed_standard_streams(home: Home, interstat: Interstat) -> None:
    """The daemon's own files never get their numbers, so nothing is logged into the ledger or a connection."""
    home.start(wait=False, prefix=("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"))
    wait_for(lambda: home.socket.exists() and home.ctl("ping").returncode == 0, "the daemon to answer")
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert home.spend(run).spent == 5
    (pid,) = {int(line.split()[-1]) for line in Path(f"{home.socket}.lock").read_text().splitlines()[:1]}
    assert {os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)} == {os.devnull}


@pytest.mark.parametrize("arguments", [["--version"], ["--check-config"], ["--no-such-option"]])
def test_other_invocations_with_closed_standard_streams(home: Home, arguments: list[str]) -> None:
    """They end with their usual exit codes."""
    command = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-m", "fluxbudgetd", *arguments]
    result = subprocess.run(command, env=home.environ, check=False)
    assert result.returncode == (64 if arguments == ["--no-such-option"] else 0)


def test_logs_are_json_without_a_terminal(home: Home, daemon: Daemon) -> None:
    for line in daemon.log.splitlines():
        assert line.startswith("{"), line


def drop_root(directory: Path) -> None:
    """Become another user, in a directory whose path that user may not be able to search."""
    os.chdir(directory)
    os.setgroups([])
    os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
    os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)


@needs_root("become another user")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside pytest-xdist's threads
def test_client_does_not_ask_another_users_daemon(home: Home) -> None:
    """The client refuses a socket of another user in the daemon's place."""
    home.socket.parent.mkdir(parents=True)
    os.chown(home.socket.parent, OTHER_USER, OTHER_USER)
    child = os.fork()
    if child == 0:
        try:
            drop_root(home.socket.parent)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(home.socket.name)
                listener.listen()
                time.sleep(60)
        finally:
            os._exit(0)
    try:
        wait_for(home.socket.exists, "the false daemon")
        result = home.ctl("remaining")
        assert (result.returncode, result.stdout) == (69, "")
        assert "served by uid 65534, not by you" in result.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_root("become another user")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork beside pytest-xdist's threads
def test_another_user_is_refused(home: Home, daemon: Daemon) -> None:
    """This holds even if the permissions allow the connection. Root is served."""
    home.socket.parent.chmod(0o711)
    home.socket.chmod(0o666)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            drop_root(home.socket.parent)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(home.socket.name)
                os.write(writer, peer.recv(65536))
                os.write(writer, peer.recv(1))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        data = answers.read()
    os.waitpid(child, 0)
    decoder = FrameDecoder()
    decoder.feed(data)
    body = decoder.next()
    assert body is not None
    answer = messages.decode_answer(body)
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "forbidden"
    assert decoder.buffered == 0
    wait_for(lambda: "65534" in daemon.log, "the peer's uid in the log, which is written by a thread")
    home.ok("ping")


def test_daemon_without_active_runs_does_not_wake_up(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Before the first run and after the last one there is no watcher and no timer."""
    run = started(home, session="s1")
    wait_for(lambda: daemon.status("Threads") > 3, "the watcher to start")
    home.ok("run", "finish", "--run", run)

    def switches() -> int:
        return sum(
            int(line.split()[1])
            for task in Path(f"/proc/{daemon.process.pid}/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("voluntary_ctxt_switches")
        )

    def quiet() -> bool:
        before = switches()
        time.sleep(0.5)  # the time observed; a watcher would wake up ten times in it
        return switches() == before

    wait_for(quiet, "the daemon to come to rest")
