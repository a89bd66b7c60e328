"""Sessions that continue in another process or as another session: what was said before counts once."""

import shlex

import pytest

from harness.claude_code.script import agent, bash, says
from harness.claude_code.sessions import enter, leave
from harness.claude_code.stage import Stage, handed_out
from harness.daemon import wait_for

pytestmark = pytest.mark.claude


def play_first(stage: Stage) -> str:
    """Play a session with a sub-agent; return its id."""
    stage.script.add("worker", says("Working.", bash("echo work")), says("Worked."), agent="general-purpose")
    return stage.play(stage.script.add("first", says("Starts.", agent("Play worker")), says("Done."))).id


def test_resumed_and_continued(stage: Stage) -> None:
    """Both keep the session's id."""
    first = play_first(stage)
    more = stage.script.add("more", says("Goes on.", bash("echo more")), says("Done."))
    assert stage.play(more, "--resume", first).id == first
    assert stage.play(more, "--continue").id == first


def test_forked(stage: Stage) -> None:
    """A fork starts with a copy of the lines so far; only what follows is new. The same holds for its forks."""
    first = play_first(stage)
    more = stage.script.add("more", says("Goes on.", bash("echo more")), says("Done."))
    fork = stage.play(more, "--resume", first, "--fork-session").id
    second = stage.play(more, "--resume", fork, "--fork-session").id
    assert len({first, fork, second}) == 3
    stage.play(more, "--resume", first)
    stage.play(more, "--resume", second)


def test_resumed_and_forked_in_the_next_run(stage: Stage) -> None:
    """Each run counts what was handed out while it was active."""
    first = play_first(stage)
    before = stage.totals()
    run = stage.run
    stage.next_run()
    more = stage.script.add("more", says("Goes on.", bash("echo more")), says("Done."))
    stage.play(more, "--resume", first)
    stage.play(more, "--resume", first, "--fork-session")
    assert stage.totals(run) == before


def test_summarized_on_request(stage: Stage) -> None:
    """Claude Code does not write the request that `/compact` makes."""
    first = play_first(stage)
    stage.play("/compact", "--resume", first, unwritten=["summary"])
    more = stage.script.add("more", says("Goes on."))
    stage.play(more, "--resume", first, unwritten=["summary"])


def test_session_inside_a_session(stage: Stage) -> None:
    """It joins the run of its directory."""
    inner = stage.script.add("inner", says("Inside.", bash("echo inner")), says("Done."))
    command = f"{shlex.join([str(stage.claude.program), '--print', inner, '--allowedTools', 'Bash'])} </dev/null"
    outer = stage.play(stage.script.add("outer", says("Starts one.", bash(command)), says("Done."))).id
    assert len({response.session for response in stage.api.responses} - {outer}) == 1


def test_forked_and_cleared_from_a_session_of_another_run(stage: Stage) -> None:
    """Both continue in that run, although the directory has another one."""
    first = stage.play(stage.script.add("hello", says("Hello.", bash("true")), says("Hello again."))).id
    elsewhere = stage.home.root / "elsewhere"
    elsewhere.mkdir()
    run = stage.home.ok("run", "start", "--budget", "1000000", cwd=elsewhere)
    stage.home.ok("run", "attach", "--run", run, "--session", first)
    more = stage.script.add("more", says("More.", bash("true")), says("More is said."))
    fork = stage.claude.run(more, "--resume", first, "--fork-session").id

    def wait_until_counted(responses: int) -> None:
        """Wait until so many responses were handed out, and those since the attachment are counted."""
        wait_for(lambda: len(stage.api.responses) == responses, f"response {responses}")
        wanted = handed_out(stage.api.responses[2:]).all.total
        wait_for(lambda: stage.totals(run).all.total >= wanted, f"response {responses} to be counted")

    with stage.claude.in_terminal("--resume", first) as terminal:
        enter(terminal, more)
        wait_until_counted(6)
        enter(terminal, "/clear")
        terminal.wait_until_gone("More is said.")
        enter(terminal, more)
        wait_until_counted(8)
        leave(terminal)
    wanted = handed_out(stage.api.responses[2:])
    assert stage.totals(run) == wanted
    assert set(wanted.by_session) >= {first, fork}
    assert len(wanted.by_session) == 3
