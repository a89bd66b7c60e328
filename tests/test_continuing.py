"""Sessions that continue another one, after `/clear`, resume and fork: they stay in its run."""

import json

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started
from harness.hooks import SILENT, Claude, attached_sessions, write_usage


@pytest.fixture
def runs(home: Home, daemon: Daemon) -> None:
    """Start the run of the directory, `here`, and the run that the first session was attached to by hand, `mine`."""
    started(home, id="here", token_budget=1000)
    answer = home.ask(messages.RunStart(project_dir="/elsewhere", id="mine", token_budget=1000, wait_ms=30_000))
    assert isinstance(answer, messages.RunAnswer)
    home.ok("run", "attach", "--run", "mine", "--session", "s1")


def starts(home: Home, session: str, source: str, *, environ: messages.Hints | None = None) -> str:
    """Call the hook of a session's start; return the id of the run that it joined, or ""."""
    claude = Claude(home, session)
    output = claude.call("SessionStart", source=source, hints=environ)
    return output.context.removeprefix("fluxbudget: run ").partition(",")[0] if output.context else ""


def ends(home: Home, session: str, reason: str) -> None:
    assert Claude(home, session).call("SessionEnd", reason=reason) == SILENT


def copy_history(home: Home, session: str, fork: str, *, named: bool = False) -> None:
    """Copy a session's transcript, as a fork does; `named`: each line says from which session."""
    copied = []
    for line in Claude(home, session).transcript.read_text().splitlines():
        found = {**json.loads(line), "sessionId": fork}
        if named:
            found["forkedFrom"] = {"sessionId": session, "messageUuid": found["uuid"]}
        copied.append(f"{json.dumps(found)}\n")
    with Claude(home, fork).transcript.open("a") as file:
        file.writelines(copied)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("source", ["resume", "compact", "clear", "fork"])
@pytest.mark.parametrize("variable", [None, "here"])
def test_same_session_stays_in_its_run(home: Home, source: str, variable: str | None) -> None:
    """It stays whatever the environment says, until the run has ended."""
    environ = messages.Hints(run=variable, cwd=str(home.project))
    assert starts(home, "s1", source, environ=environ) == "mine"
    home.ok("run", "finish", "--run", "mine")
    assert starts(home, "s1", source, environ=environ) == "here"


@pytest.mark.usefixtures("runs")
def test_cleared_session_goes_on_in_the_run(home: Home) -> None:
    """`/clear` gives a new id. The session that was cleared last in the project is continued, once."""
    ends(home, "s1", "clear")
    assert starts(home, "s2", "clear", environ=messages.Hints(run="here", cwd=str(home.project))) == "mine"
    assert starts(home, "s3", "clear") == "here"
    ends(home, "s2", "clear")
    # The start of the next one has no hook.
    Claude(home, "s4").call("UserPromptSubmit")
    assert attached_sessions(home, "mine") == {"s1": True, "s2": True, "s4": True}
    ends(home, "s4", "clear")
    home.ok("run", "finish", "--run", "mine")
    assert starts(home, "s5", "clear") == "here"


@pytest.mark.usefixtures("runs")
def test_session_of_the_same_process_goes_on_in_the_run(home: Home) -> None:
    """The hook of the cleared session's end may come later, or not at all.

    A resumed session is a different one, and a session whose start had no hook may be: these obey the environment.
    """
    Claude(home, "s1").run("SessionStart", source="resume")
    Claude(home, "s2").run("SessionStart", source="clear")
    assert attached_sessions(home, "mine") == {"s1": True, "s2": True}
    Claude(home, "s3").run("SessionStart", source="resume")
    Claude(home, "s4").run("UserPromptSubmit", environ={"FLUXBUDGET_RUN": "here"})
    assert attached_sessions(home, "here") == {"s3": True, "s4": True}


@pytest.mark.usefixtures("runs")
def test_new_session_continues_none(home: Home) -> None:
    ends(home, "s1", "clear")
    assert starts(home, "s2", "startup") == "here"
    ends(home, "s1", "other")
    assert starts(home, "s3", "startup") == "here"


@pytest.mark.usefixtures("runs")
def test_cleared_session_is_known_by_the_environment(home: Home) -> None:
    """Some versions keep the variable of the old session."""
    environ = messages.Hints(sessions=("s1",), cwd=str(home.project))
    assert starts(home, "s2", "clear", environ=environ) == "mine"


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("source", ["resume", "fork"])
@pytest.mark.parametrize("named", [False, True])
def test_fork_goes_on_in_the_run(home: Home, source: str, named: bool) -> None:
    """Its transcript begins with a copy of the other session's; `/branch` also names that session."""
    write_usage(home, 100)
    assert home.spent("mine") == 100
    copy_history(home, "s1", "s2", named=named)
    assert starts(home, "s2", source) == "mine"
    write_usage(home, 10, session="s2", message="m2")
    assert (home.spent("mine"), home.spent("here")) == (110, 0)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("source", ["fork", None])
def test_fork_whose_transcript_is_written_later_moves(home: Home, source: str | None) -> None:
    """With `--fork-session`, the copy appears after the first prompt; some versions have no start hook for the fork."""
    write_usage(home, 100)
    assert home.spent("mine") == 100
    fork = Claude(home, "s2")
    if source is not None:
        assert starts(home, "s2", source) == "here"
    fork.call("UserPromptSubmit")
    assert attached_sessions(home, "here") == {"s2": True}
    copy_history(home, "s1", "s2")
    write_usage(home, 10, session="s2", message="m2")
    fork.call("PostToolBatch")
    assert (attached_sessions(home, "here"), attached_sessions(home, "mine")) == ({}, {"s1": True, "s2": True})
    assert (home.spent("here"), home.spent("mine")) == (0, 110)
    assert home.ok("remaining", "--session", "s2") == "890"


@pytest.mark.usefixtures("runs")
def test_session_with_a_history_of_its_own_stays(home: Home) -> None:
    """So does one that the user has moved, even if a copy appears later."""
    fork = Claude(home, "s2")
    assert starts(home, "s2", "resume") == "here"
    write_usage(home, 10, session="s2", message="m2")
    fork.call("PostToolBatch")
    write_usage(home, 100)
    assert home.spent("mine") == 100
    copy_history(home, "s1", "s2")
    fork.call("PostToolBatch")
    assert starts(home, "s3", "fork") == "here"
    started(home, id="third")
    home.ok("run", "attach", "--run", "third", "--session", "s3")
    copy_history(home, "s1", "s3")
    Claude(home, "s3").call("PostToolBatch")
    assert attached_sessions(home, "mine") == {"s1": True}
    assert attached_sessions(home, "third") == {"s3": True}


@pytest.mark.usefixtures("runs")
def test_fork_of_a_session_whose_run_has_ended_chooses_as_usual(home: Home) -> None:
    write_usage(home, 100)
    assert home.spent("mine") == 100
    copy_history(home, "s1", "s2")
    home.ok("run", "finish", "--run", "mine")
    assert starts(home, "s2", "fork") == "here"
