"""The pipe: what the client sends, and what it does itself if the daemon does not handle a command line."""

import fcntl
import os
import posix
import pwd
import socket
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetctl import pipe
from fluxbudgetctl.main import main
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.codes import ERROR_CODES
from fluxbudgetd.wire.paths import socket_path
from harness.daemon import CTL, PATIENCE, Home, wait_for
from harness.false_daemon import NOT_MINE, answering, frame, refused, replied
from harness.native import VERBS, both_clients
from harness.peer import Connection, Peer
from harness.pipes import open_pipe
from harness.samples import sample

NAMES = (
    *("FLUXBUDGET_RUN", "CLAVAIN_BEAD_ID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_SESSION_ID", "CLAUDE_CODE_ENTRYPOINT"),
    *("CLAUDE_CODE_SESSION_ATTENDED", "CLAVAIN_SKIP_BUDGET"),
)
SPEND = messages.Spend(
    budget=250_000,
    spent=208_499,
    measured=200_000,
    provisional=8_499,
    reserved=40_000,
    remaining=1_501,
    pct=83.3,
    state="warning",
    stale=False,
    stale_why=None,
)
TYPED: dict[str, messages.Answer] = {
    "remaining": messages.RemainingAnswer(run="r1", phase="executing", spend=SPEND),
    "check": messages.CheckAnswer(
        run="r1", phase="executing", allowed=False, refusal="refused|", overridden=None, note="", spend=SPEND
    ),
    "advance": messages.AdvanceAnswer(
        run="r1", advanced=True, line="advanced|p|q", phase="q", completed=None, overridden=None, note="", spend=SPEND
    ),
    "ping": messages.PingAnswer(version="0.0.1", protocol=1, pid=4711, started_at="2026"),
    "hook": messages.HookAnswer(output='{"a": 1}', exports="export A=1\n"),
    "statusline": messages.StatusLineAnswer(run="r1", line="a line", stale_why=None),
    "run_show": msgspec.structs.replace(sample(messages.RunShowAnswer), spend=SPEND),
    "tokens": messages.TokensAnswer(
        used=(messages.AgentTokens(agent_name="a", billing_tokens=1, total_tokens=2, cache_read=3),)
    ),
    "defaults": messages.DefaultsAnswer(tokens=7, source="table"),
}


def line_of(verb: str) -> list[str]:
    required = {"advance": ["--from", "p"], "tokens": ["--session", "s"]}
    return [verb, *required.get(verb, []), "--timeout", "20"]


@both_clients
@pytest.mark.parametrize("verb", VERBS)
def test_command_line_is_sent_and_the_answer_is_printed(home: Home, verb: str) -> None:
    """Words and variables are sent as bytes, no other variables are sent, and stdin only for the verbs that read it."""
    special = b"\xff\xe2\x82 a'b\n=$x"
    environ = {os.fsencode(name): special for name in NAMES}
    environ |= {b"COLUMNS": b"x", b"NO_COLOR": b"1", b"TERM": b"dumb"}
    with answering(home, replied("out\n", "err\n", 3)) as asked:
        result = subprocess.run(
            [*CTL, verb, "--timeout=20", b"--session=" + special, b"", b"-x"],
            env={**{os.fsencode(name): os.fsencode(value) for name, value in home.environ.items()}, **environ},
            cwd=home.project,
            input=b'{"x": 1}',
            capture_output=True,
            check=False,
        )
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    (request,) = asked
    assert request.pop("wait_ms") <= 20_000
    assert request.pop("started_ns") > 0
    assert request.pop("frames")
    assert request == {
        "v": 1,
        "op": "command",
        "words": [verb.encode(), b"--timeout=20", b"--session=" + special, b"", b"-x"],
        "cwd": os.fsencode(home.project),
        "env": {os.fsdecode(name): value for name, value in environ.items()},
        "stdin": b'{"x": 1}' if verb in ("hook", "statusline") else b"",
        "more": request["more"],  # either is right: the end of stdin may not have arrived yet
        "cut": False,
    }


@both_clients
def test_deleted_working_directory(home: Home) -> None:
    gone = home.root / "gone"
    gone.mkdir()
    with answering(home, replied()) as asked:
        command = ["sh", "-c", f'cd "{gone}" && rmdir "{gone}" && exec "$@"', "-", *CTL, "env"]
        subprocess.run(command, env=home.environ, check=True)
    assert asked[0]["cwd"] is None


@both_clients
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("remaining --default 4_2", ["remaining", "--default=42"]),
        ("remaining --run a --run=b --json --json", ["remaining", "--run=b", "--json"]),
        ("env --timeout 2e1 --scope a\udcff", ["env", "--scope=a\udcff"]),
        ("env --timeout 1", ["env"]),
        (
            "check --override x --session=é --require --json",
            ["check", "--session=é", "--override=x", "--json", "--require"],
        ),
        ("advance --to q --from p --override=x", ["advance", "--from=p", "--to=q", "--override=x"]),
        ("statusline --no-color --no-colour --width 007", ["statusline", "--width=7", "--no-colour"]),
    ],
)
def test_unusual_spelling_is_sent_again_in_plain_form(home: Home, line: str, words: list[str]) -> None:
    """The daemon leaves it to argparse, then carries out the plain form that argparse gives."""
    plain = [os.fsencode(word) for word in words]
    with answering(home, lambda request: replied("done\n") if request["words"] == plain else NOT_MINE) as asked:
        result = home.ctl(*(os.fsencode(word) for word in line.split()), "--timeout", "20", own_deadline=True)
    assert (result.returncode, result.stdout) == (0, "done\n"), (result, asked)


@both_clients
@pytest.mark.parametrize("line", ["remaining --tim 20", "env --no-such", "hook extra", "advance", "check --json=1"])
def test_mistakes_are_left_to_argparse(home: Home, line: str) -> None:
    with answering(home, NOT_MINE) as asked:
        result = home.ctl(*line.split())
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (64, "", 2)
    assert {one["op"] for one in asked} == {"command"}


@both_clients
def test_stdin_is_sent_again_with_the_plain_words(home: Home) -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return replied("done\n") if b"--run=b" in request["words"] else NOT_MINE

    with answering(home, answer) as asked:
        result = home.ctl("hook", "--run=a", "--run", "b", "--timeout", "20", stdin='{"x": 1}')
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert asked[-1]["stdin"] == b'{"x": 1}'


def typed_answer(verb: str, request: dict[str, Any], to_commands: bytes) -> bytes:
    if request["op"] == "command":
        return to_commands
    assert request["op"] == {"env": "remaining", "numbers": "run_show"}.get(verb, verb)
    return frame(TYPED[request["op"]])


PRINTED = {
    "remaining": (0, "1501\n"),
    "env": (0, "export FLUX_BUDGET_REMAINING=1501\n"),
    "check": (1, "refused|\n"),
    "advance": (0, "advanced|p|q\n"),
    "ping": (0, "fluxbudgetd 0.0.1 (pid 4711) answered in "),
    "hook": (0, '{"a": 1}\n'),
    "statusline": (0, "a line\n"),
    "numbers": (0, "run=some id\nphase=some phase\nbudget=250000\nspent=208499\n"),
    "tokens": (0, '[{"agent_name": "a", "billing_tokens": 1, "total_tokens": 2, "cache_read": 3}]\n'),
    "defaults": (0, "7\n"),
}


@both_clients
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("to_commands", [refused("unknown_op"), NOT_MINE], ids=["no commands", "not these words"])
def test_older_daemon_gets_a_typed_request(home: Home, verb: str, to_commands: bytes) -> None:
    exports = home.root / "exports"
    with answering(home, lambda request: typed_answer(verb, request, to_commands)) as asked:
        environ = {"CLAUDE_ENV_FILE": str(exports), "FLUXBUDGET_RUN": "r"}
        result = home.ctl(*line_of(verb), stdin='{"session_id": "s"}', environ=environ)
    code, out = PRINTED[verb]
    assert (result.returncode, result.stdout[: len(out)], result.stderr) == (code, out, "")
    typed = asked[-1]
    if verb not in ("ping", "tokens"):
        assert (typed["hints"]["run"], typed["hints"]["cwd"]) == ("r", str(home.project))
    if verb in ("hook", "statusline"):
        assert typed["input"] == b'{"session_id": "s"}'
    assert exports.exists() == (verb == "hook")


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "env", "check", "hook"])
def test_older_daemon_may_refuse_the_typed_request(home: Home, verb: str) -> None:
    """Exit codes and output are the same as for any other failure."""

    def answer(request: dict[str, Any]) -> bytes:
        return refused("unknown_op") if request["op"] == "command" else refused("no_run", "no run here")

    with answering(home, answer):
        result = home.ctl(*line_of(verb), stdin="{}")
    printed = {"remaining": "0\n", "env": "unset FLUX_BUDGET_REMAINING\n"}
    assert (result.returncode, result.stdout) == (0 if verb == "hook" else 3, printed.get(verb, ""))
    assert result.stderr == ("" if verb == "hook" else "fluxbudgetctl: no run here\nhint: h\n")


@both_clients
@pytest.mark.parametrize("verb", ["env", "statusline"])
def test_stderr_is_written_before_stdout(home: Home, verb: str) -> None:
    """If both are the same file, warnings come before the line that they are about."""
    with answering(home, replied("out\n", "err\n")):
        result = subprocess.run(
            [*CTL, verb, "--timeout", "20"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert result.stdout == b"err\nout\n"


@both_clients
def test_connection_that_is_closed_before_the_request_is_read(home: Home) -> None:
    """The kernel may report that as a reset."""

    def close(connection: Connection) -> None:
        connection.socket.recv(1)

    with Peer(home.socket, close):
        for verb in ("env", "statusline"):
            result = home.ctl(verb, "--timeout", "20", stdin="{}")
            assert result.returncode == 69
            assert "the daemon closed the connection without an answer" in result.stderr


@both_clients
@pytest.mark.parametrize("verb", ["env", "check", "statusline"])
def test_stdout_that_does_not_block_is_waited_for(home: Home, verb: str) -> None:
    """Another program has made the pipe non-blocking, and it has less room than the output needs."""
    err = "note\n" if verb == "check" else ""
    with answering(home, replied("x" * 200_000, err)), open_pipe() as out:
        room = fcntl.fcntl(out.writing, fcntl.F_GETPIPE_SZ)
        os.set_blocking(out.writing, False)
        with subprocess.Popen(
            [*CTL, verb, "--timeout", "20"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=out.writing,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(out.writing)
            wait_for(lambda: _unread(out.reading) == room, "a full pipe")
            wait_for(lambda: _state(process.pid) in "SZ", "the client to wait, or to fail")
            printed = b""
            while piece := os.read(out.reading, 65536):
                printed += piece
            _, reported = process.communicate(timeout=PATIENCE)
    assert (process.returncode, len(printed), reported) == (0, 200_000, err.encode())


def _unread(file: int) -> int:
    return int.from_bytes(fcntl.ioctl(file, termios.FIONREAD, bytes(4)), sys.byteorder)


def _state(pid: int) -> str:
    """Return the state of a process: S is asleep, Z has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- what the native client hands over


def handed(home: Home, failed: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    native = {"FLUXBUDGETCTL_NATIVE": "1", "FLUXBUDGETCTL_FAILED": failed}
    return home.ctl(*arguments, environ={**native, **environ}, stdin="{}")


@pytest.mark.parametrize(
    ("failed", "code", "words"),
    [
        ("connect 2", 69, "No such file or directory"),
        ("connect 1", 69, "Operation not permitted"),
        ("uid 4711", 69, "it is served by uid 4711, not by you"),
        ("closed", 69, "the daemon closed the connection without an answer"),
        ("garbage", 70, "not understood"),
        ("timeout", 75, "no answer from"),
        ("send 90", 69, "Message too long"),
        ("error timeout", 75, ERROR_CODES["timeout"][1]),
    ],
)
def test_failure_of_the_native_client_is_not_retried(home: Home, failed: str, code: int, words: str) -> None:
    with answering(home, replied("1\n")) as asked:
        for verb in ("env", "statusline"):
            result = handed(home, failed, *line_of(verb))
            assert (result.returncode, result.stdout) == (code, ""), result
            assert words in result.stderr.splitlines()[0]
        assert handed(home, failed, "env", "--default", "1").returncode == 64
        assert handed(home, failed, "env", "--help").stdout.startswith("usage: fluxbudgetctl env")
    assert not asked


def test_other_errors_are_requested_again(home: Home) -> None:
    """Only the daemon has the error message."""
    with answering(home, refused("busy", "too many")) as asked:
        result = handed(home, "error busy", "env", "--timeout", "20")
    assert (result.returncode, result.stderr) == (69, "fluxbudgetctl: too many\nhint: h\n")
    assert len(asked) == 1
    home.socket.unlink()
    with answering(home, replied("1\n")):
        assert handed(home, "error of-the-future", "env", "--timeout", "20").stdout == "1\n"
        assert handed(home, "something else", "env", "--timeout", "20").stdout == "1\n"


def test_unknown_errno_from_the_native_client_is_reported(home: Home) -> None:
    assert handed(home, "connect 99999999999999999999", "env", "--timeout", "20").returncode == 69


def test_failure_without_a_native_client_is_ignored(home: Home) -> None:
    """A left-over variable does not silence the client."""
    with answering(home, replied("1\n")):
        left = {"FLUXBUDGETCTL_FAILED": "closed", "FLUXBUDGETCTL_NATIVE": ""}
        assert home.ctl("env", "--timeout", "20", environ=left).stdout == "1\n"


def test_stdin_is_not_waited_for_after_a_timeout(home: Home) -> None:
    """The native client has already waited. Waiting again would take an hour here."""
    environ = {**home.environ, "FLUXBUDGETCTL_NATIVE": "1", "FLUXBUDGETCTL_FAILED": "timeout"}
    with open_pipe() as pipe:
        result = subprocess.run(
            [*CTL, "statusline", "--timeout", "3600"],
            env=environ,
            stdin=pipe.reading,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (result.returncode, b"within 3600 s" in result.stderr) == (75, True), result


def test_older_daemon_found_by_the_native_client(home: Home) -> None:
    with answering(home, frame(TYPED["remaining"])) as asked:
        assert handed(home, "error unknown_op", "env", "--timeout", "20").stdout.startswith("export ")
    assert [one["op"] for one in asked] == ["remaining"]


# --- defects


@pytest.mark.parametrize(("environ", "code", "lines"), [({}, 0, 0), ({"FLUXBUDGET_DEBUG": "1"}, 70, 2)])
def test_defect_does_not_disturb_a_session(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environ: dict[str, str],
    code: int,
    lines: int,
) -> None:
    def fail(call: pipe.Call) -> None:
        raise LookupError(call.verb)

    monkeypatch.setattr(pipe, "run", fail)
    monkeypatch.setattr(posix, "environ", {os.fsencode(name): os.fsencode(value) for name, value in environ.items()})
    assert main(["hook"]) == code
    assert main(["env"]) == 70
    assert capfd.readouterr().err.count("\n") == 2 + lines


# --- where the daemon listens


@pytest.fixture
def elsewhere(home: Home) -> Path:
    """Return the path of a socket that is not the default one; the default one's directory exists."""
    home.socket.parent.mkdir(parents=True, mode=0o700)
    return home.root / "elsewhere.sock"


def note(home: Home, *lines: str) -> Path:
    """Write the lock file of the default socket."""
    lock = Path(f"{home.socket}.lock")
    lock.write_text("".join(f"{line}\n" for line in lines))
    return lock


DEFAULT = {"FLUXBUDGET_SOCKET": ""}


@both_clients
@pytest.mark.parametrize("verb", ["env", "statusline", "status"])
@pytest.mark.parametrize("runtime", [None, "", "relative", "/nowhere", "/nowhere/", "/nowhere/../x"])
def test_default_place_depends_on_the_runtime_directory(home: Home, verb: str, runtime: str | None) -> None:
    """If no runtime directory is known, it depends on the home directory."""
    environ = {name: value for name, value in home.environ.items() if name != "XDG_RUNTIME_DIR"} | DEFAULT
    if runtime is not None:
        environ["XDG_RUNTIME_DIR"] = runtime
    command = [*CTL, verb, "--timeout", "20"]
    result = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    place = socket_path(environ, os.geteuid())
    assert (result.returncode, result.stderr.split(": ")[1]) == (69, f"no daemon at {place}")


@both_clients
@pytest.mark.parametrize("verb", ["env", "status"])
@pytest.mark.parametrize("given", ["", "relative"])
def test_home_that_is_not_absolute_is_ignored(home: Home, verb: str, given: str) -> None:
    """The password database says where the home directory is."""
    kept = {name: value for name, value in home.environ.items() if name != "XDG_RUNTIME_DIR"}
    environ = kept | DEFAULT | {"HOME": given}
    command = [*CTL, verb, "--timeout", "20"]
    result = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    place = socket_path({"HOME": pwd.getpwuid(os.geteuid()).pw_dir}, os.geteuid())
    assert (result.returncode, result.stderr.split(": ")[1]) == (69, f"no daemon at {place}")


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "status"])
@pytest.mark.parametrize("is_dead", [False, True])
def test_lock_file_says_where_the_daemon_listens(home: Home, elsewhere: Path, verb: str, is_dead: bool) -> None:
    """The client connects there if the default socket is missing or dead."""
    if is_dead:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(home.socket))
    note(home, "fluxbudgetd pid 4711", f"socket {elsewhere}")
    status = messages.StatusAnswer(
        runs=(), sources=(), unattributed=messages.Unattributed(sessions=0, billing=0, total=0), next=None
    )
    with answering(home, replied("1\n") if verb == "remaining" else frame(status), str(elsewhere)) as asked:
        result = home.ctl(verb, "--timeout", "20", environ=DEFAULT)
        assert home.ctl(verb, "--timeout", "20").returncode == 69  # $FLUXBUDGET_SOCKET is explicit
    assert (result.returncode, len(asked)) == (0, 1), result


@both_clients
def test_daemon_that_is_recorded_but_gone(home: Home, elsewhere: Path) -> None:
    """The error names the default socket, because the lock file may be old."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(elsewhere))
    note(home, "fluxbudgetd pid 4711", f"socket {elsewhere}")
    result = home.ctl("env", "--timeout", "20", environ=DEFAULT)
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr.startswith(f"fluxbudgetctl: no daemon at {home.socket}: No such file or directory\n")


@both_clients
def test_relative_path_in_a_deleted_directory_leads_nowhere(home: Home) -> None:
    (home.root / "gone").mkdir()
    for verb, code in (("env", 69), ("hook", 0)):
        (home.root / "gone").mkdir(exist_ok=True)
        command = ["sh", "-c", 'rmdir ../gone; exec "$@"', "-", *CTL, verb, "--timeout", "20"]
        environ = {**home.environ, "FLUXBUDGET_SOCKET": "s.sock"}
        result = subprocess.run(
            command, env=environ, cwd=home.root / "gone", stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert (result.returncode, b"written" in result.stderr) == (code, False), result


@both_clients
@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["fluxbudgetd pid 1"],
        ["fluxbudgetd pid 1", "socket"],
        ["fluxbudgetd pid 1", "socket elsewhere.sock"],
        ["fluxbudgetd pid 1", "SOCKET {}"],
        ["socket {}"],
        ["fluxbudgetd pid 1", "socket {}/x"],
    ],
)
def test_unusable_lock_file_is_ignored(home: Home, elsewhere: Path, lines: Sequence[str]) -> None:
    note(home, *(line.format(elsewhere) for line in lines))
    with answering(home, replied("1\n"), str(elsewhere)) as asked:
        result = home.ctl("remaining", "--timeout", "20", environ=DEFAULT, cwd=home.root)
    assert (result.returncode, asked) == (69, [])


@both_clients
def test_lock_file_of_another_kind_is_not_read(home: Home, elsewhere: Path) -> None:
    real = note(home, "fluxbudgetd pid 1", f"socket {elsewhere}").rename(home.root / "real")
    lock = Path(f"{home.socket}.lock")
    lock.symlink_to(real)
    with answering(home, replied("1\n"), str(elsewhere)) as asked:
        assert home.ctl("remaining", "--timeout", "20", environ=DEFAULT).returncode == 69
        lock.unlink()
        os.mkfifo(lock)
        fifo = os.open(lock, os.O_RDWR)
        os.write(fifo, real.read_bytes())
        assert home.ctl("remaining", "--timeout", "20", environ=DEFAULT).returncode == 69
        os.close(fifo)
    assert not asked
