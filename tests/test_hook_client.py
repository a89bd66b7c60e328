"""`fluxbudgetctl hook`: the output that Claude Code gets, and that it gets none on any error."""

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.wire.framing import MAX_STDIN
from harness.daemon import CTL, Daemon, Home, killed, started, wait_for
from harness.false_daemon import NOT_MINE, answering, frame, refused, replied
from harness.imports import HEAVY
from harness.interstat import Interstat
from harness.native import both_clients
from harness.pipes import fill, full_pipe
from harness.suspend import suspend

ROOT = Path(__file__).parents[1]
SCRIPT = Path(os.path.abspath(sys.executable)).parent / "fluxbudgetctl"
PROMPT = b'{"session_id": "s", "hook_event_name": "UserPromptSubmit"}'
LAUNCH = b'{"session_id": "s", "hook_event_name": "PreToolUse", "tool_name": "Agent", "tool_input": {"prompt": "p"}}'
OUTPUT = '{"systemMessage": "Wärnung"}'
ANSWER = replied(f"{OUTPUT}\n", exports="export FLUXBUDGET_RUN=r1\n")
SILENCE = replied()
REFUSAL = refused("ledger", 'it is "full"')


def hook(
    home: Home, *arguments: str, data: bytes | None = PROMPT, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the hook as Claude Code does, with a long time limit. With `data` None, stdin is closed."""
    return subprocess.run(
        [*CTL, "hook", "--timeout", "20", *arguments] if "--timeout" not in arguments else [*CTL, "hook", *arguments],
        env={**home.environ, **(environ or {})},
        cwd=home.project,
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        preexec_fn=(lambda: os.close(0)) if data is None else None,
        capture_output=True,
        timeout=60,
        check=False,
    )


def is_silent(result: subprocess.CompletedProcess[bytes]) -> bool:
    return (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@contextmanager
def failing(home: Home, how: str) -> Iterator[list[str]]:
    """Run a daemon that fails in this way; yield arguments with which the hook fails soon."""
    answers = {
        "refuses": REFUSAL,
        "talks garbage": b"\xff\xff\xff\xff",
        "answers something else": frame({"ok": True, "op": "ping"}),
        "answers with numbers": frame({"ok": True, "op": "command", "mine": True, "exit": 0, "out": 1}),
        "closes": b"",
    }
    with contextlib.ExitStack() as stack:
        if how == "is silent":
            stack.enter_context(answering(home, None))
        elif how == "is dead":
            with answering(home, b""):
                pass  # leaves a socket without a daemon
        elif how != "is away":
            stack.enter_context(answering(home, answers[how]))
        yield ["--timeout", "0.5"] if how == "is silent" else []


FAILURES = {
    "is away": "No such file or directory",
    "is dead": "Connection refused",
    "is silent": "no answer from",
    "refuses": 'it is "full"',
    "talks garbage": "not understood",
    "answers something else": "not understood",
    "answers with numbers": "not understood",
    "closes": "without an answer",
}


@both_clients
def test_input_is_sent_and_the_answer_is_printed(home: Home) -> None:
    environ = {"FLUXBUDGET_RUN": "r", "CLAVAIN_BEAD_ID": "b", "CLAUDE_CODE_SESSION_ID": "s1"}
    with answering(home, ANSWER) as asked:
        result = hook(home, environ=environ)
        assert (result.returncode, result.stdout.decode(), result.stderr) == (0, OUTPUT + "\n", b"")
        hook(home, "--scope", "b9")
    first, second = asked
    assert (first["op"], first["v"], first["words"]) == ("command", 1, [b"hook", b"--timeout", b"20"])
    assert (first["stdin"], first["cut"]) == (PROMPT, False)
    assert first["env"] == {name: value.encode() for name, value in environ.items()}
    assert first["cwd"] == os.fsencode(home.project)
    assert 0 < first["wait_ms"] <= 20_000
    assert 0 < first["started_ns"] < time.monotonic_ns()
    assert second["words"][-2:] == [b"--scope", b"b9"]


@both_clients
@pytest.mark.parametrize("data", [b'{"broken": ', b"\xff\xfe\0 no text", b"[]", b" ", "{'ü': 1}\n".encode()])
def test_input_is_sent_unchanged(home: Home, data: bytes) -> None:
    with answering(home, SILENCE) as asked:
        assert is_silent(hook(home, data=data))
    assert [one["stdin"] for one in asked] == [data]


@both_clients
def test_long_input_is_read_completely_but_only_its_beginning_is_sent(home: Home) -> None:
    data = LAUNCH + os.urandom(5_000_000)
    with answering(home, ANSWER) as asked:
        with subprocess.Popen(
            [*CTL, "hook", "--timeout", "20"],
            env=home.environ,
            cwd=home.project,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(data)  # raises BrokenPipeError unless all of it is read
            process.stdin.close()
            assert process.stdout.read().decode() == OUTPUT + "\n"
        assert process.returncode == 0
        hook(home, data=data[:MAX_STDIN])
    assert [(one["stdin"], one["cut"]) for one in asked] == [(data[:MAX_STDIN], True), (data[:MAX_STDIN], False)]


@both_clients
@pytest.mark.parametrize("data", [b"", None])
def test_empty_input(home: Home, data: bytes | None) -> None:
    """Stdin is empty or closed."""
    with answering(home, SILENCE) as asked:
        assert is_silent(hook(home, data=data, environ={"FLUXBUDGET_DEBUG": "1"}))
    assert [(one["stdin"], one["more"]) for one in asked] == [(b"", False)]


@both_clients
def test_stdin_that_is_a_terminal_is_not_read(home: Home) -> None:
    master, slave = os.openpty()
    try:
        with answering(home, SILENCE) as asked:
            result = subprocess.run(
                [*CTL, "hook", "--timeout", "60"], env=home.environ, stdin=slave, capture_output=True, check=False
            )
        assert is_silent(result)
        assert [(one["stdin"], one["more"]) for one in asked] == [(b"", False)]
    finally:
        os.close(master)
        os.close(slave)


@both_clients
def test_stdin_that_cannot_be_read_counts_as_empty(home: Home) -> None:
    """It was opened for writing only."""
    file = os.open(home.root / "file", os.O_WRONLY | os.O_CREAT)
    with answering(home, SILENCE) as asked:
        result = hook_with(file, home, "20")
    os.close(file)
    assert is_silent(result)
    assert [(one["stdin"], one["more"]) for one in asked] == [(b"", False)]


@contextmanager
def open_stdin(*begun: bytes) -> Iterator[int]:
    """Yield a pipe into which this has been written, and which is not closed."""
    reading, writing = os.pipe()
    for piece in begun:
        os.write(writing, piece)
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def hook_with(stdin: int, home: Home, seconds: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CTL, "hook", "--timeout", seconds],
        env={**home.environ, **environ},
        cwd=home.project,
        stdin=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


@both_clients
def test_whole_value_is_answered_although_stdin_stays_open(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The launch of a sub-agent is refused without waiting for the end of the input."""
    started(home, session="s", token_budget=1000, enforcement="hard")
    interstat.insert("s", input_tokens=900, output_tokens=200)
    with open_stdin(LAUNCH) as stdin:
        found = decision(hook_with(stdin, home, "20"))
    assert found["permissionDecision"] == "deny"


@both_clients
def test_pieces_of_the_input_are_forwarded_as_they_arrive(home: Home) -> None:
    """The daemon decides when it has enough."""
    reading, writing = os.pipe()
    arrived = threading.Event()

    def write() -> None:
        os.write(writing, LAUNCH[:10])
        arrived.wait()
        os.write(writing, LAUNCH[10:])

    with answering(home, ANSWER) as asked:
        writer = threading.Thread(target=write)
        writer.start()
        process = subprocess.Popen(
            [*CTL, "hook", "--timeout", "40"], env=home.environ, stdin=reading, stdout=subprocess.PIPE
        )
        with killed(process):
            wait_for(lambda: not select.select([reading], [], [], 0)[0], "the client to read the beginning")
            arrived.set()
            assert process.stdout is not None
            assert process.stdout.read().decode() == OUTPUT + "\n"
        writer.join()
    os.close(reading)
    os.close(writing)
    assert (asked[0]["stdin"], asked[0]["more"]) == (LAUNCH, True)


@both_clients
@pytest.mark.parametrize(("begun", "closed"), [(b"", False), (PROMPT[:-1], False), (LAUNCH[:-1], True)])
def test_input_that_does_not_end_is_given_up_at_the_deadline(home: Home, begun: bytes, closed: bool) -> None:
    """There is no output, unless a sub-agent's launch must fail closed. (The false daemon waits for a whole value.)"""
    environ = {"FLUXBUDGET_FAIL_CLOSED": "1"} if closed else {}
    with answering(home, ANSWER) as asked, open_stdin(begun) as stdin:
        result = hook_with(stdin, home, "0.5", **environ)
    assert not asked
    if closed:
        assert decision(result)["permissionDecision"] == "deny"
        assert "no answer from" in json.loads(result.stdout)["systemMessage"]
    else:
        assert is_silent(result)


@both_clients
def test_large_tool_results_are_answered(home: Home, daemon: Daemon) -> None:
    """The input has 2 MiB, of which the daemon gets the beginning."""
    started(home, session="s")
    data = {"session_id": "s", "hook_event_name": "PostToolBatch", "tool_results": "x" * (2 << 20)}
    result = hook(home, data=json.dumps(data).encode(), environ={"FLUXBUDGET_DEBUG": "1"})
    assert is_silent(result)


@both_clients
def test_stopped_daemon_costs_the_deadline_and_no_word(home: Home, daemon: Daemon) -> None:
    """The hook ends after its own 0.2 s; the time limit of the test is much longer."""
    suspend(daemon.process.pid)
    try:
        with open_stdin(PROMPT) as stdin:
            result = subprocess.run(
                [*CTL, "hook"], env=home.environ, stdin=stdin, capture_output=True, timeout=60, check=False
            )
    finally:
        daemon.signal(signal.SIGCONT)
    assert is_silent(result)


def decision(result: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    assert (result.returncode, result.stderr) == (0, b"")
    found: dict[str, Any] = json.loads(result.stdout)["hookSpecificOutput"]
    return found


@both_clients
@pytest.mark.parametrize("how", FAILURES)
def test_without_an_answer_nothing_is_printed(home: Home, how: str) -> None:
    """The exceptions are debug mode, and a sub-agent's launch that must fail closed."""
    with failing(home, how) as soon:
        for environ in ({}, {"FLUXBUDGET_FAIL_CLOSED": "yes"}, {"FLUXBUDGET_FAIL_CLOSED": ""}):
            assert is_silent(hook(home, *soon, data=LAUNCH, environ=environ))
        result = hook(home, *soon, environ={"FLUXBUDGET_DEBUG": "1", "FLUXBUDGET_FAIL_CLOSED": "1"})
        assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (0, b"", 1)
        assert FAILURES[how] in result.stderr.decode()
        denied = hook(home, *soon, data=LAUNCH, environ={"FLUXBUDGET_FAIL_CLOSED": "1"})
    found, message = decision(denied), json.loads(denied.stdout)["systemMessage"]
    assert (found["hookEventName"], found["permissionDecision"]) == ("PreToolUse", "deny")
    assert "FLUXBUDGET_FAIL_CLOSED" not in found["permissionDecisionReason"], "the model does not read how to lift it"
    assert message.startswith("fluxbudget: the daemon gave no answer (")
    assert FAILURES[how] in message
    assert "), and FLUXBUDGET_FAIL_CLOSED=1" in message


@both_clients
@pytest.mark.parametrize(
    ("data", "denied"),
    [
        (b'{"hook_event_name":"PreToolUse","tool_name":"Task"}', True),
        (b'{"hook_event_name":"PreToolUse","tool_name":"Workflow"}', True),
        (b'{"hook_event_name":"PreToolUse","tool_name":"SendMessage"}', True),
        (rb'{"hook_event_name":"PreToolUse","tool_name":"\u0041gent"}', True),
        (b'{"hook_event_name":"PreToolUse","tool_name":"Read","tool_input":{"tool_name":"Agent"}}', False),
        (b'{"tool_name" : \n "Agent" ,\t"hook_event_name"\r:"PreToolUse"}', True),
        (b'{"hook_event_name": "PreToolUse", "tool_name": "Agent", "tool_input": {"prompt": "cut', True),
        (b'{"x": "tool_name", "hook_event_name": "PreToolUse", "tool_name": "Agent"}', True),
        (rb'{"x": "\"tool_name\": \"Read\"", "hook_event_name": "PreToolUse", "tool_name": "Agent"}', True),
        (rb'{"x": "\"tool_name\": \"Agent\"", "hook_event_name": "PreToolUse", "tool_name": "Read"}', False),
        (b'{"hook_event_name": "PreToolUse", "tool_name": "Read"}', False),
        (b'{"hook_event_name": "PreToolUse", "tool_name": "AgentX"}', False),
        (b'{"hook_event_name": "PreToolUse", "tool_name": "Agent', False),
        (b'{"hook_event_name": "PreToolUse", "tool_name": 1}', False),
        (b'{"hook_event_name": "PreToolUse"}', False),
        (b'{"hook_event_name": "PostToolUse", "tool_name": "Agent"}', False),
        (b"PreToolUse Agent", False),
    ],
)
def test_only_the_launch_of_a_sub_agent_fails_closed(home: Home, data: bytes, denied: bool) -> None:
    result = hook(home, data=data, environ={"FLUXBUDGET_FAIL_CLOSED": "1"})
    if denied:
        assert decision(result)["permissionDecision"] == "deny"
    else:
        assert is_silent(result)


@both_clients
def test_an_answered_launch_is_not_denied(home: Home) -> None:
    with answering(home, SILENCE):
        assert is_silent(hook(home, data=LAUNCH, environ={"FLUXBUDGET_FAIL_CLOSED": "1"}))


@both_clients
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "export FLUXBUDGET_RUN=r1\n"),
        ("", "export FLUXBUDGET_RUN=r1\n"),
        ("export A=1\n", "export A=1\nexport FLUXBUDGET_RUN=r1\n"),
        ("export A=1", "export A=1\nexport FLUXBUDGET_RUN=r1\n"),
    ],
)
def test_exports_are_appended_to_the_env_file(home: Home, before: str | None, after: str) -> None:
    place = home.root / "env"
    if before is not None:
        place.write_text(before)
    with answering(home, ANSWER):
        assert hook(home, environ={"CLAUDE_ENV_FILE": str(place)}).stdout.decode() == OUTPUT + "\n"
    assert place.read_text() == after
    if before is None:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600


@both_clients
def test_exports_that_cannot_be_written_are_ignored(home: Home) -> None:
    with answering(home, ANSWER):
        for place in (str(home.root / "no" / "such"), str(home.root), ""):
            result = hook(home, environ={"CLAUDE_ENV_FILE": place})
            assert (result.returncode, result.stdout.decode(), result.stderr) == (0, OUTPUT + "\n", b""), place


@both_clients
def test_exports_are_only_written_to_regular_files(home: Home) -> None:
    """A FIFO without a reader would block the hook."""
    place = home.root / "env"
    os.mkfifo(place)
    fifo = os.open(place, os.O_RDWR)
    device = home.root / "device"
    device.symlink_to("/dev/null")
    try:
        with answering(home, ANSWER):
            for full in (False, True):
                if full:
                    fill(fifo)
                result = hook(home, environ={"CLAUDE_ENV_FILE": str(place)})
                assert (result.returncode, result.stdout.decode(), result.stderr) == (0, OUTPUT + "\n", b"")
                assert bool(select.select([fifo], [], [], 0)[0]) == full
            result = hook(home, environ={"CLAUDE_ENV_FILE": str(device), "FLUXBUDGET_DEBUG": "1"})
    finally:
        os.close(fifo)
    assert (result.returncode, result.stdout.decode(), result.stderr.count(b"\n")) == (0, OUTPUT + "\n", 1)
    assert b"it is not a regular file" in result.stderr


@both_clients
def test_without_exports_no_file_is_created(home: Home) -> None:
    place = home.root / "env"
    with answering(home, SILENCE):
        assert is_silent(hook(home, environ={"CLAUDE_ENV_FILE": str(place)}))
    assert not place.exists()


@both_clients
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true", "2>&-"])
def test_output_that_cannot_be_written_is_ignored(home: Home, redirection: str) -> None:
    with answering(home, ANSWER) as asked:
        result = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}; exit "${{PIPESTATUS[0]}}"', "-", *CTL, "hook", "--timeout", "20"],
            env=home.environ,
            input=PROMPT,
            capture_output=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(asked) == 1


@both_clients
@pytest.mark.parametrize(("length", "room"), [(100, 0), (100_000, 8192)])
def test_output_that_is_not_read_is_given_up_at_the_deadline(home: Home, length: int, room: int) -> None:
    with answering(home, replied("x" * length + "\n")), full_pipe(room) as pipe:
        result = subprocess.run(
            [*CTL, "hook", "--timeout", "4"],
            env={**home.environ, "FLUXBUDGET_DEBUG": "1"},
            input=PROMPT,
            stdout=pipe.writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stderr.count(b"\n")) == (0, 1), result
    assert b"the output cannot be written: the reader did not read it in time" in result.stderr


@both_clients
def test_long_output_is_written_completely(home: Home) -> None:
    output = "x" * 300_000 + "\n"
    with answering(home, replied(output)):
        assert hook(home).stdout.decode() == output


@both_clients
def test_denial_is_written_even_after_the_deadline(home: Home) -> None:
    """The daemon used up the time limit, and a launch that must fail closed is denied nevertheless."""
    with answering(home, None):
        result = hook(home, "--timeout", "0.3", data=LAUNCH, environ={"FLUXBUDGET_FAIL_CLOSED": "1"})
    assert decision(result)["permissionDecision"] == "deny"


@both_clients
def test_output_does_not_depend_on_the_locale(home: Home) -> None:
    with answering(home, ANSWER):
        result = hook(home, environ={"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"})
    assert result.stdout.decode() == OUTPUT + "\n"


@both_clients
def test_wrong_flags_are_reported(home: Home) -> None:
    """The exit code is 64, with and without a daemon. Claude Code logs and ignores it."""
    for flags in (["--no-such"], ["--timeout", "0"], ["--run", "a", "--scope", "b"]):
        result = hook(home, *flags)
        assert (result.returncode, result.stdout) == (64, b"")
        with answering(home, NOT_MINE):
            result = hook(home, *flags)
        assert (result.returncode, result.stdout) == (64, b"")
        home.socket.unlink()


@both_clients
@pytest.mark.parametrize("flag", ["--help", "--print-settings"])
def test_help_and_settings_without_a_daemon(home: Home, flag: str) -> None:
    result = hook(home, flag)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout


def test_hook_imports_nothing_heavy(home: Home) -> None:
    """This includes indirect imports."""
    with answering(home, SILENCE):
        result = subprocess.run(
            [sys.executable, "-X", "importtime", *CTL[1:], "hook", "--timeout", "20"],
            env=home.environ,
            input=PROMPT.decode(),
            capture_output=True,
            text=True,
            check=True,
        )
    ready = result.stderr.partition("fluxbudgetctl")[2]  # what Python itself imports before is not ours to choose
    names = {line.rpartition("|")[2].strip() for line in ready.splitlines()}
    assert "fluxbudgetctl.pipe" in names
    assert not names & {*HEAVY, "typing", "collections.abc", "enum", "fluxbudgetctl.fallback", "fluxbudgetctl.cli"}
