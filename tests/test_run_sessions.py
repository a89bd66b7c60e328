"""Which session `run start` and `run attach` attach, what they print, and what `run show` says about earlier usage."""

import pytest

from harness.daemon import Daemon, Home
from harness.hooks import attached_sessions
from harness.live import transcript

BOTH = {"CLAUDE_CODE_SESSION_ID": "s1", "CLAUDE_SESSION_ID": "s2"}


@pytest.mark.parametrize(
    ("arguments", "environ", "attached"),
    [
        ((), {}, set()),
        ((), BOTH, {"s1"}),
        ((), {"CLAUDE_SESSION_ID": "s2"}, {"s2"}),
        ((), {"CLAUDE_CODE_SESSION_ID": "", "CLAUDE_SESSION_ID": "s2"}, {"s2"}),
        (("--session", "s3"), BOTH, {"s3"}),
        (("--no-session",), BOTH, set()),
        (("--no-session",), {}, set()),
    ],
)
def test_run_start_attaches_the_session_that_it_runs_in(
    home: Home, daemon: Daemon, arguments: tuple[str, ...], environ: dict[str, str], attached: set[str]
) -> None:
    run = home.ok("run", "start", *arguments, environ=environ)
    assert attached_sessions(home, run).keys() == attached


def test_repeated_run_start_finds_its_run_from_any_session(home: Home, daemon: Daemon) -> None:
    """Every session that repeats it joins the run."""
    start = ("run", "start", "--scope", "b1", "--budget", "1000")
    for session in ("s1", "s1", "s2", None):
        environ = {} if session is None else {"CLAUDE_CODE_SESSION_ID": session}
        run = home.ok(*start, "--id", "r1", environ=environ)
        assert run == "r1"
    assert attached_sessions(home, "r1") == {"s1": True, "s2": True}


def test_transcript_belongs_to_the_session_that_the_command_runs_in(home: Home, daemon: Daemon) -> None:
    writer = transcript(home, "another-name")
    run = home.ok("run", "start", "--transcript", str(writer.path), environ=BOTH)
    writer.response("m1", tokens=(70, 0, 0, 0))
    assert home.spent(run) == 70


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "start", "--whole"), "--whole needs a session"),
        (("run", "start", "--whole", "--no-session"), "--whole needs a session"),
        (("run", "start", "--session", "s1", "--no-session"), "not allowed with argument"),
        (("run", "attach", "--whole"), "--session"),
    ],
)
def test_contradictions_are_usage_errors(home: Home, daemon: Daemon, arguments: tuple[str, ...], words: str) -> None:
    result = home.ctl(*arguments, environ=BOTH if "--no-session" in arguments else None)
    assert (result.returncode, result.stdout) == (64, "")
    assert words in result.stderr
    assert home.json("run", "list")["runs"] == []


def test_move_from_another_run_is_reported(home: Home, daemon: Daemon) -> None:
    """`run attach` says it in its line and in JSON, `run start` on stderr. A session that joins is not reported."""
    for run in ("one", "two"):
        home.ok("run", "start", "--id", run)
    joined = home.ok("run", "attach", "--run", "one", "--session", "s1")
    assert "moved" not in joined
    moved = home.ok("run", "attach", "--run", "two", "--session", "s1")
    assert moved.startswith("two: active, brainstorm, ")
    assert moved.endswith("(the session has moved from run one)")
    assert home.json("run", "attach", "--run", "two", "--session", "s1")["moved_from"] is None
    assert home.json("run", "attach", "--run", "one", "--session", "s1")["moved_from"] == "two"
    started = home.ctl("run", "start", "--id", "three", environ=BOTH)
    assert started.returncode == 0
    assert started.stdout == "three\n"
    assert started.stderr.startswith("fluxbudgetctl: the session has moved here from run one\n")
    assert home.ctl("run", "start", "--id", "three", environ=BOTH).stderr == ""
    assert attached_sessions(home, "three") == {"s1": True}


def test_earlier_usage_is_shown_and_does_not_count(home: Home, daemon: Daemon) -> None:
    """It is not called unattributed either, and `--whole` counts it."""
    transcript(home).response("m1", request="r1", tokens=(500, 100, 7000, 0), at="2026-01-01T00:00:00.000Z")
    run = home.ok("run", "start", "--session", "s1", "--budget", "1000")
    transcript(home).response("m2", request="r2", tokens=(20, 0, 300, 0))
    words = "tokens before the run started, not counted (--whole counts them)"
    assert f"earlier:     600 billing {words}\n" in home.ok("run", "show", "--run", run)
    shown = home.json("run", "show", "--run", run)
    assert shown["spend"]["spent"] == 20
    assert shown["earlier"] == shown["sources"][0]["earlier"] == {"billing": 600, "total": 7600}
    assert home.json("status")["unattributed"] == {"sessions": 0, "billing": 0, "total": 0}
    assert home.ok("run", "attach", "--run", run, "--session", "s1", "--whole").endswith("warning at 80 %")
    assert home.spent(run) == 620
    shown = home.json("run", "show", "--run", run)
    assert shown["earlier"] == shown["sources"][0]["earlier"] == {"billing": 0, "total": 0}
    assert "earlier:" not in home.ok("run", "show", "--run", run)


def test_earlier_usage_is_in_tokens_of_the_cost_basis(home: Home, daemon: Daemon) -> None:
    transcript(home).response("m1", tokens=(500, 100, 7000, 0), at="2026-01-01T00:00:00.000Z")
    run = home.ok("run", "start", "--session", "s1", "--cost-basis", "total")
    assert "earlier:     7600 total tokens before" in home.ok("run", "show", "--run", run)
