"""`fluxbudgetctl statusline`: its request, its output and its errors."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from harness.daemon import CTL, Home
from harness.false_daemon import answering, frame
from harness.native import both_clients
from harness.pipes import full_pipe

LINE = "executing \x1b[32m██░\x1b[0m 208k/250k"


def answer(stale_why: str | None = None) -> bytes:
    return frame({"ok": True, "op": "statusline", "run": "r1", "line": LINE, "stale_why": stale_why})


def statusline(
    home: Home, *arguments: str, data: str = "", environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return home.ctl("statusline", "--timeout", "20", *arguments, stdin=data, environ=environ)


@both_clients
@pytest.mark.parametrize("stale_why", [None, "interstat: locked"])
def test_line_is_printed_unchanged(home: Home, stale_why: str | None) -> None:
    """If the numbers are the last known ones, stderr says so."""
    data = '{"session_id": "sé", broken'
    with answering(home, answer(stale_why)) as asked:
        result = statusline(home, "--session", "s1", data=data, environ={"FLUXBUDGET_RUN": "r"})
    assert (result.returncode, result.stdout) == (0, LINE + "\n")
    assert result.stderr == (f"fluxbudgetctl: last known numbers: {stale_why}\n" if stale_why else "")
    assert (asked[0]["op"], asked[0]["input"], asked[0]["session"]) == ("statusline", data.encode(), "s1")
    assert (asked[0]["hints"]["run"], asked[0]["width"], asked[0]["colour"]) == ("r", None, True)


@both_clients
@pytest.mark.parametrize(
    ("arguments", "environ", "width", "colour"),
    [
        (["--width", "40"], {"COLUMNS": "80"}, 40, True),
        ([], {"COLUMNS": "80"}, 80, True),
        ([], {"COLUMNS": "0"}, None, True),
        ([], {"COLUMNS": "-3"}, None, True),
        ([], {"COLUMNS": "wide"}, None, True),
        ([], {"COLUMNS": "9" * 5000}, None, True),
        ([], {"NO_COLOR": "1"}, None, False),
        ([], {"NO_COLOR": ""}, None, True),
        ([], {"TERM": "dumb"}, None, False),
        ([], {"TERM": "xterm"}, None, True),
        (["--no-colour"], {}, None, False),
        (["--no-color", "--width=7"], {}, 7, False),
    ],
)
def test_width_and_colour(
    home: Home, arguments: list[str], environ: dict[str, str], width: int | None, colour: bool
) -> None:
    with answering(home, answer()) as asked:
        assert statusline(home, *arguments, environ=environ).returncode == 0
    assert (asked[0]["width"], asked[0]["colour"]) == (width, colour)


@both_clients
@pytest.mark.parametrize("width", ["0", "-1", "x", "1.5", "100000", "٣"])
def test_wrong_width_is_a_usage_error(home: Home, width: str) -> None:
    result = statusline(home, f"--width={width}")
    assert (result.returncode, result.stdout) == (64, "")


@both_clients
@pytest.mark.parametrize(
    ("served", "code", "words"),
    [
        (frame({"ok": False, "error": {"code": "no_run", "message": "no run here", "hint": "h"}}), 3, "no run here"),
        (frame({"ok": False, "error": {"code": "busy", "message": "many", "hint": "h"}}), 69, "many"),
        (frame({"ok": True, "op": "statusline", "line": 5}), 70, "no line"),
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
def test_terminal_is_not_read_and_stalled_input_is_an_error(home: Home) -> None:
    def run(stdin: int, seconds: str) -> Any:
        return subprocess.run(
            [*CTL, "statusline", "--timeout", seconds], env=home.environ, stdin=stdin, capture_output=True, check=False
        )

    master, slave = os.openpty()
    reading, writing = os.pipe()
    with answering(home, answer()) as asked:
        result = run(slave, "60")
        assert (result.returncode, result.stdout.decode()) == (0, LINE + "\n")
        stalled = run(reading, "0.3")
    assert (stalled.returncode, stalled.stdout) == (75, b"")
    assert b"stdin did not end within 0.3 s" in stalled.stderr
    assert [one["input"] for one in asked] == [b""]
    for file in (master, slave, reading, writing):
        os.close(file)


@both_clients
def test_output_does_not_depend_on_the_locale(home: Home) -> None:
    """Claude Code reads UTF-8."""
    environ = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    with answering(home, answer()):
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
    with answering(home, answer()) as asked:
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
    with answering(home, answer()) as asked, full_pipe() as pipe:
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
