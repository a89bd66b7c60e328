"""`fluxbudgetctl statusline`: its request, its output and its errors."""

import os
import subprocess
from collections.abc import Mapping

import pytest

from harness.daemon import CTL, Daemon, Home, started
from harness.false_daemon import answering, frame, refused, replied
from harness.native import both_clients
from harness.pipes import full_pipe

LINE = "executing \x1b[32m██░\x1b[0m 208k/250k"
STALE = "fluxbudgetctl: last known numbers: interstat: locked\n"
ANSWER = replied(f"{LINE}\n")


def statusline(
    home: Home, *arguments: str, data: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return home.ctl("statusline", "--timeout", "20", *arguments, stdin=data, environ=environ)


@both_clients
@pytest.mark.parametrize("err", ["", STALE])
def test_line_is_printed_unchanged(home: Home, err: str) -> None:
    """If the numbers are the last known ones, stderr says so."""
    data = '{"session_id": "sé", broken'
    variables = {"FLUXBUDGET_RUN": "r", "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}
    with answering(home, replied(f"{LINE}\n", err)) as asked:
        result = statusline(home, "--session", "s1", data=data, environ=variables)
    assert (result.returncode, result.stdout, result.stderr) == (0, LINE + "\n", err)
    (request,) = asked
    assert request["words"] == [b"statusline", b"--timeout", b"20", b"--session", b"s1"]
    assert (request["stdin"], request["cut"]) == (data.encode(), False)
    assert request["env"] == {name: value.encode() for name, value in variables.items()}


@both_clients
@pytest.mark.parametrize("width", ["0", "-1", "x", "1.5", "100000", "٣"])
def test_wrong_width_is_a_usage_error(home: Home, daemon: Daemon, width: str) -> None:
    result = statusline(home, f"--width={width}")
    assert (result.returncode, result.stdout) == (64, "")


@both_clients
@pytest.mark.parametrize(
    ("served", "code", "words"),
    [
        (replied("", "fluxbudgetctl: no run here\nhint: h\n", 3), 3, "no run here"),
        (refused("busy", "many"), 69, "many"),
        (frame({"ok": True, "op": "statusline", "line": 5}), 70, "not understood"),
        (b"\0\0\0\1\xc1", 70, "not understood"),
        (b"", 69, "without an answer"),
    ],
)
def test_errors_go_to_stderr(home: Home, served: bytes, code: int, words: str) -> None:
    with answering(home, served):
        result = statusline(home)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1].startswith("hint: ")


@both_clients
def test_daemon_away_and_daemon_silent(home: Home) -> None:
    assert "no daemon at" in statusline(home).stderr
    with answering(home, None):
        result = home.ctl("statusline", "--timeout", "0.5")
    assert (result.returncode, result.stdout) == (75, "")


@both_clients
def test_terminal_is_not_read(home: Home) -> None:
    master, slave = os.openpty()
    with answering(home, ANSWER) as asked:
        result = run(slave, home, "60")
    assert (result.returncode, result.stdout.decode()) == (0, LINE + "\n")
    assert [(one["stdin"], one["more"]) for one in asked] == [(b"", False)]
    for file in (master, slave):
        os.close(file)


@both_clients
@pytest.mark.parametrize("given", [b"", b"{"])
def test_input_that_never_ends_costs_at_most_the_deadline(home: Home, given: bytes) -> None:
    """The false daemon waits for a whole value."""
    reading, writing = os.pipe()
    os.write(writing, given)
    with answering(home, ANSWER) as asked:
        result = run(reading, home, "0.3")
    assert (result.returncode, result.stdout) == (75, b"")
    assert b"within 0.3 s" in result.stderr
    assert not asked
    for file in (reading, writing):
        os.close(file)


@both_clients
def test_whole_value_is_answered_although_stdin_stays_open(home: Home, daemon: Daemon) -> None:
    started(home, session="s1", token_budget=1000)
    reading, writing = os.pipe()
    os.write(writing, b'{"session_id": "s1"}')
    result = run(reading, home, "20")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"0%" in result.stdout
    for file in (reading, writing):
        os.close(file)


@both_clients
def test_stdin_without_input_shows_the_directory(home: Home, daemon: Daemon) -> None:
    """The answer comes before the deadline, although stdin stays open and nothing is ever written to it."""
    home.ok("run", "start", "--budget", "1000")
    reading, writing = os.pipe()
    result = run(reading, home, "4")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"0%" in result.stdout
    for file in (reading, writing):
        os.close(file)


def run(stdin: int, home: Home, seconds: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CTL, "statusline", "--timeout", seconds],
        env=home.environ,
        cwd=home.project,
        stdin=stdin,
        capture_output=True,
        check=False,
    )


@both_clients
def test_output_does_not_depend_on_the_locale(home: Home) -> None:
    """Claude Code reads UTF-8."""
    environ = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    with answering(home, ANSWER):
        result = subprocess.run(
            [*CTL, "statusline", "--timeout", "20"],
            env={**home.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    assert result.stdout.decode() == LINE + "\n"


@both_clients
@pytest.mark.parametrize(("redirection", "code"), [(">&-", 0), (">/dev/full", 70)])
def test_output_that_cannot_be_written(home: Home, redirection: str, code: int) -> None:
    """A closed stdout counts as intentional; a full disk is an error."""
    with answering(home, ANSWER) as asked:
        result = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "-", *CTL, "statusline", "--timeout", "20"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    assert result.returncode == code, result
    assert len(asked) == 1


@both_clients
def test_unread_line_is_given_up_at_the_deadline(home: Home) -> None:
    with answering(home, ANSWER) as asked, full_pipe() as pipe:
        result = subprocess.run(
            [*CTL, "statusline", "--timeout", "2"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=pipe.writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert result.returncode == 75, result
    assert b"the reader did not read it in time" in result.stderr
    assert len(asked) == 1
