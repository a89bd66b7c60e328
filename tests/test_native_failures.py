"""The native client when something fails: the daemon, the search for it, stdout, or the client's environment."""

import array
import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fluxbudgetd.wire.framing import MAX_FRAME, MAX_STDIN
from harness import native
from harness.daemon import Daemon, Home, killed, started, wait_for
from harness.native import ANSWER, ANSWERED, BRIEF, JSON, PATIENT, SILENT, VERBS, Native, handed
from harness.peer import Connection, Peer, answer, framed
from harness.pipes import open_pipe
from harness.privilege import needs_root
from harness.suspend import suspend

pytestmark = native.marks


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Native:
    return Native(native.native_client(tmp_path_factory), tmp_path)


# --- failures


@contextmanager
def full_backlog(client: Native) -> Iterator[None]:
    """Run a daemon that accepts no connection, and whose backlog is full."""
    client.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(client.socket))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(client.socket))
        yield


@contextmanager
def failing(client: Native, how: str) -> Iterator[str]:
    """Run a daemon that fails in this way; yield what the Python client is told."""
    pieces = {
        "closes": ("closed", b""),
        "half a length": ("closed", b"\0\0"),
        "half an answer": ("closed", ANSWER[:-1]),
        "garbage": ("garbage", b"\xff\xff\xff\xff"),
        "busy": ("error busy", framed({"ok": False, "error": {"code": "busy", "message": "m", "hint": "h"}})),
        "wrong version": ("error unsupported_version", framed({"ok": False, "error": {"code": "unsupported_version"}})),
        "of the future": ("error of-the-future", framed({"ok": False, "error": {"code": "of-the-future"}, "new": 5})),
    }
    if how == "away":
        yield "connect 2"
    elif how == "no directory":
        client.socket.parent.write_bytes(b"")
        yield "connect 20"
    elif how == "dead":
        client.answering(b"").__exit__()
        yield "connect 111"
    elif how == "no place":
        with full_backlog(client):
            yield "timeout"
    elif how == "silent":
        with Peer(client.socket, lambda connection: len(list(connection.frames()))):
            yield "timeout"
    elif how == "dripping":
        with Peer(client.socket, _drip):
            yield "timeout"
    elif how == "closes at once":
        with Peer(client.socket, lambda _: None):
            yield "closed"
    else:
        failed, data = pieces[how]
        with client.answering(data):
            yield failed


def _wait_unread(connection: Connection) -> None:
    """Wait until the client disconnects, without reading anything."""
    waiting = select.poll()
    waiting.register(connection.socket, select.POLLHUP)
    waiting.poll()


def _drip(connection: Connection) -> None:
    connection.send(MAX_FRAME.to_bytes(4, "big"))
    while True:
        connection.send(b"\xc0")
        time.sleep(0.01)


FAILURES = (
    *("away", "no directory", "dead", "no place", "silent", "dripping", "closes at once", "closes", "half a length"),
    *("half an answer", "garbage", "busy", "wrong version", "of the future"),
)


@pytest.mark.parametrize("how", FAILURES)
def test_failure_is_handed_on(client: Native, how: str) -> None:
    """Python gets the command line, stdin and the failure. A hook is silent unless it was asked to speak."""
    patience = BRIEF if how in ("no place", "silent", "dripping") else PATIENT
    with failing(client, how) as failed:
        for verb in ("remaining", "statusline"):
            assert handed(client.run(verb, *patience, stdin=JSON))[:3] == ([verb, *patience], JSON, failed)
        for environ in ({}, {"FLUXBUDGET_FAIL_CLOSED": "yes"}, {"FLUXBUDGET_DEBUG": ""}):
            assert client.run("hook", *patience, stdin=JSON, environ=environ) == SILENT
        for environ in ({"FLUXBUDGET_FAIL_CLOSED": "1"}, {"FLUXBUDGET_DEBUG": "1"}):
            outcome = client.run("hook", *patience, stdin=JSON, environ=environ)
            assert handed(outcome)[:3] == (["hook", *patience], JSON, failed)


def test_daemon_that_never_reads(client: Native) -> None:
    """The socket's buffer fills up, but stdin is still read."""
    data = os.urandom(2 << 20)
    long_enough = ("--timeout", "3")  # to read all of it on a busy machine
    with Peer(client.socket, _wait_unread):
        assert client.run("hook", *long_enough, stdin=data) == SILENT
        given = handed(client.run("statusline", *long_enough, stdin=data))
    assert (given.failed, given.stdin[:MAX_STDIN], len(given.stdin)) == ("timeout", data[:MAX_STDIN], MAX_STDIN + 1)


@pytest.mark.parametrize(
    "words", [("--print-settings",), ("--help",), ("--run", "r"), ("word",), ("--timeout", "5", "-h")]
)
def test_hook_with_other_words_is_left_to_python(client: Native, words: tuple[str, ...]) -> None:
    """Such a command line may need no daemon, or be wrong."""
    assert handed(client.run("hook", *words, stdin=JSON))[:3] == (["hook", *words], JSON, "connect 2")


@pytest.mark.parametrize("verb", VERBS)
def test_older_daemon_is_left_to_python(client: Native, verb: str) -> None:
    """A hook does so, too."""
    error = {"code": "unknown_op", "message": "m", "hint": "h"}
    with client.answering(framed({"ok": False, "error": error})):
        assert handed(client.run(verb, *PATIENT, stdin=JSON))[:3] == ([verb, *PATIENT], JSON, "error unknown_op")


@needs_root("become another user")
def test_daemon_of_another_user_is_refused(client: Native) -> None:
    """Nothing is sent to it. (Root trusts only root.)"""
    # The peer is the process that listens.
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "os.setresuid(4711, 4711, 4711); s.listen(); print(flush=True); print(s.accept()[0].recv(9))"
    )
    client.socket.parent.mkdir()
    command = [sys.executable, "-c", code, str(client.socket)]
    with killed(subprocess.Popen(command, stdout=subprocess.PIPE)) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert handed(client.run("remaining", *PATIENT))[:3] == (["remaining", *PATIENT], b"", "uid 4711")
        assert server.stdout.readline() == b"b''\n"


def test_hook_gives_up_on_a_stopped_daemon_at_its_deadline(home: Home, client: Native, daemon: Daemon) -> None:
    """The hook is silent and gives up after 0.2 s, long before the test's own time limit."""
    started(home)
    suspend(daemon.process.pid)
    try:
        assert client.run("hook", stdin=JSON, environ=home.environ) == SILENT
    finally:
        daemon.signal(signal.SIGCONT)


# --- where the daemon listens


@contextmanager
def lock_file(client: Native, content: str) -> Iterator[Path]:
    place = client.socket.with_name("fluxbudgetd.sock.lock")
    place.parent.mkdir(exist_ok=True)
    place.write_text(content)
    yield place


def test_lock_file_says_where_the_daemon_listens(client: Native, tmp_path: Path) -> None:
    elsewhere = tmp_path / "e"
    content = f"fluxbudgetd pid 5\nsocket {elsewhere}\nmore\n"
    with Peer(elsewhere, lambda connection: connection.reply(ANSWER)) as peer, lock_file(client, content) as lock:
        assert client.run("env", *PATIENT) == ANSWERED
        client.answering(b"").__exit__()  # leaves a socket without a daemon
        assert client.run("env", *PATIENT) == ANSWERED
        lock.chmod(0o400)
        assert client.run("env", *PATIENT) == ANSWERED
        chosen = {"FLUXBUDGET_SOCKET": str(client.socket)}
        assert handed(client.run("env", *PATIENT, environ=chosen)).failed == "connect 111"
    assert len(peer.served) == 3


@pytest.mark.parametrize(
    "content",
    ["", "fluxbudgetd pid 5", "fluxbudgetd pid 5\n", "\n", "\nsocket ", "\nsocket e", "\nsocket /", "\nSocket {e}"],
)
def test_lock_file_without_a_place(client: Native, tmp_path: Path, content: str) -> None:
    """The failure at the default socket is reported."""
    elsewhere = tmp_path / "e"
    with Peer(elsewhere, lambda _: None) as peer:
        for line in (content, f"\nsocket {client.socket}", f"\nsocket {tmp_path}/{'x' * 100}", "x" * 1000):
            with lock_file(client, line.format(e=elsewhere)):
                assert handed(client.run("env", *PATIENT)).failed == "connect 2"
    assert peer.served == []


def test_lock_file_must_be_a_file_of_this_user(client: Native, tmp_path: Path) -> None:
    elsewhere = tmp_path / "e"
    with Peer(elsewhere, lambda _: None) as peer, lock_file(client, f"\nsocket {elsewhere}\n") as lock:
        lock.rename(tmp_path / "moved")
        lock.symlink_to(tmp_path / "moved")
        assert handed(client.run("env", *PATIENT)).failed == "connect 2"
        lock.unlink()
        os.mkfifo(lock)
        assert handed(client.run("env", *PATIENT)).failed == "connect 2"
        lock.unlink()
        lock.mkdir()
        assert handed(client.run("env", *PATIENT)).failed == "connect 2"
    assert peer.served == []


@needs_root("give a file to another user")
def test_lock_file_of_another_user_is_ignored(client: Native, tmp_path: Path) -> None:
    elsewhere = tmp_path / "e"
    with Peer(elsewhere, lambda _: None) as peer, lock_file(client, f"\nsocket {elsewhere}\n") as lock:
        os.chown(lock, 4711, 4711)
        assert handed(client.run("env", *PATIENT)).failed == "connect 2"
    assert peer.served == []


@pytest.mark.parametrize("chosen", ["", "run/s", "./run/s", "{home}/run/s", "{home}//run/./s"])
def test_places(client: Native, chosen: str) -> None:
    """The socket is `$FLUXBUDGET_SOCKET`, which may be relative, or else in `$XDG_RUNTIME_DIR`."""
    place = client.home / "run" / "s" if chosen else client.socket
    with Peer(place, lambda connection: connection.reply(ANSWER)):
        environ = {"FLUXBUDGET_SOCKET": chosen.format(home=client.home), "HOME": ""}
        assert client.run("env", *PATIENT, environ=environ) == ANSWERED


@pytest.mark.parametrize("runtime", ["", "relative"])
def test_place_in_the_home_directory(client: Native, runtime: str) -> None:
    """It is used if there is no runtime directory."""
    if Path(f"/run/user/{os.geteuid()}").is_dir():
        pytest.skip("this user has a runtime directory")
    with tempfile.TemporaryDirectory(prefix="fb") as home:  # a test's own directory is too long for this path
        place = Path(home) / ".local" / "state" / "fluxbudget" / "run" / "fluxbudgetd.sock"
        with Peer(place, lambda connection: connection.reply(ANSWER)):
            assert client.run("env", *PATIENT, environ={"XDG_RUNTIME_DIR": runtime, "HOME": home}) == ANSWERED
            assert handed(client.run("env", environ={"XDG_RUNTIME_DIR": runtime, "HOME": ""})).failed is None


@pytest.mark.parametrize("chosen", ["/no/../such", "/no/such/", "/no/such/.", "..", ".", "/", "/" + "x" * 107])
def test_unusual_places_are_left_to_python(client: Native, chosen: str) -> None:
    assert handed(client.run("env", environ={"FLUXBUDGET_SOCKET": chosen})).failed is None
    assert handed(client.run("hook", environ={"FLUXBUDGET_SOCKET": chosen})).failed is None


def test_longest_place(client: Native) -> None:
    assert handed(client.run("env", environ={"FLUXBUDGET_SOCKET": "/" + "x" * 106})).failed == "connect 2"


# --- standard files, signals, limits


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files(client: Native, closed: str) -> None:
    """The socket does not take their descriptors."""
    with client.answering(ANSWER) as peer:
        for verb in VERBS:
            command = ["bash", "-c", f'"$@" {closed}', "-", str(client.program), verb, *PATIENT]
            result = subprocess.run(
                command, env=client.environ, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            assert result.returncode == 3
            assert result.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"1501\n")
            assert result.stderr == (b"" if "2>&-" in closed else b"note\n")
    assert {request["stdin"] for request in peer.served} == {b""}


def test_being_stopped_for_a_while_changes_nothing(client: Native) -> None:
    """Signals that interrupt a wait do not end it."""
    with client.answering(ANSWER), open_pipe() as (reading, writing):
        process = client.start("hook", *PATIENT, stdin=reading)
        os.write(writing, b"{")
        suspend(process.pid)
        process.send_signal(signal.SIGCONT)
        os.write(writing, b"}")
        os.close(writing)
        assert client.end(process) == ANSWERED


def test_answer_that_arrived_in_time_is_used(client: Native) -> None:
    """The client was stopped, and only looks after its deadline."""

    def serve(connection: Connection) -> None:
        request = connection.command()
        pid, _, _ = struct.unpack("3i", connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        suspend(pid)
        connection.send(ANSWER)
        deadline = request["started_ns"] + 500_000_000
        wait_for(lambda: time.monotonic_ns() > deadline, "the deadline")
        os.kill(pid, signal.SIGCONT)

    with Peer(client.socket, serve):
        assert client.run("env", "--timeout", "0.5") == ANSWERED


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 70, b"fluxbudgetctl: the output cannot be written: No space left on device\n"),
        ("| true", 3, b"note\n"),
        ("2>/dev/full", 3, b""),
    ],
)
def test_output_that_cannot_be_written(client: Native, redirection: str, code: int, message: bytes) -> None:
    """A closed pipe keeps the exit code; any other error of stdout is reported; errors of stderr are ignored."""
    large = framed(answer(exit=3, out=b"x" * 200_000, err=b"note\n"))
    script = f'"$@" {redirection}; exit "${{PIPESTATUS[0]}}"'
    with client.answering(large):
        command = ["bash", "-c", script, "-", str(client.program), "env", *PATIENT]
        result = subprocess.run(command, env=client.environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert result.returncode == code
    assert message in result.stderr


def test_output_beyond_the_limit_of_file_sizes(client: Native, tmp_path: Path) -> None:
    """It is an error, not a signal."""
    with client.answering(framed(answer(out=b"x" * 8192))), (tmp_path / "out").open("wb") as file:
        limit = (4096, resource.RLIM_INFINITY)
        process = client.start(
            "env",
            *PATIENT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        outcome = client.end(process)
    assert (outcome.code, outcome.err.partition(b"\n")[0]) == (
        70,
        b"fluxbudgetctl: the output cannot be written: File too large",
    )


def test_output_waits_for_a_reader(client: Native) -> None:
    """It waits even after the deadline, and even if stdout is non-blocking."""
    out = b"x" * 1_000_000
    with client.answering(framed(answer(out=out))), open_pipe() as (reading, writing):
        os.set_blocking(writing, False)
        process = client.start("env", "--timeout", "1", stdin=subprocess.DEVNULL, stdout=writing)
        os.close(writing)
        wait_for(lambda: _state(process.pid) == "S" and _is_full(reading), "a full pipe")
        with os.fdopen(os.dup(reading), "rb") as file:
            assert file.read() == out
        assert client.end(process) == SILENT


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _is_full(reading: int) -> bool:
    size = array.array("i", [0])
    fcntl.ioctl(reading, termios.FIONREAD, size)
    return size[0] >= 60_000
