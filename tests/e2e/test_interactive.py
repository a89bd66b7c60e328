"""Interactive sessions, in a pseudo-terminal."""

import pytest

from harness.claude_code.script import agent, bash, says, spends
from harness.claude_code.sessions import enter, leave
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude


def test_branch(stage: Stage) -> None:
    """A branch starts with a copy of the conversation. Claude Code writes neither the title nor a side question."""
    hello = stage.script.add("hello", says("Hello.", bash("echo hello")), says("All is said."))
    more = stage.script.add("more", says("More.", bash("echo more")), says("More is said."))
    with stage.claude.in_terminal() as terminal:
        enter(terminal, hello)
        stage.wait_for_turn(2)
        enter(terminal, "/btw Why is that?")
        terminal.wait_for("By the way.")
        terminal.press("\x1b")
        enter(terminal, "/branch")
        terminal.wait_for("Branched session")
        enter(terminal, more)
        stage.wait_for_turn(4)
        leave(terminal)
    stage.require_equal(unwritten=["title", "side question"])
    assert len({response.session for response in stage.api.responses}) == 2


def test_compact_and_clear(stage: Stage) -> None:
    """Claude Code does not write the request that `/compact` makes. `/clear` starts a session of the same run."""
    more = stage.script.add("more", says("More.", bash("echo more")), says("More is said."))  # too short for a title
    with stage.claude.in_terminal() as terminal:
        enter(terminal, more)
        stage.wait_for_turn(2)
        enter(terminal, "/compact")
        terminal.wait_for("Compacted")
        enter(terminal, more)
        stage.wait_for_turn(4)
        enter(terminal, "/clear")
        terminal.wait_until_gone("Compacted")
        enter(terminal, more)
        stage.wait_for_turn(6)
        leave(terminal)
    stage.require_equal(unwritten=["summary"])
    assert len({response.session for response in stage.api.responses}) == 2


def test_exhausted_budgets_as_a_person_sees_them(stage: Stage) -> None:
    """A soft one asks before a launch. A hard one ends the turn and blocks prompts, and says how to go on."""
    stage.next_run(token_budget=100_000)
    stage.script.add("worker", says("Works."), agent="general-purpose")
    soft = stage.script.add("soft", spends(120_000), says("Starts.", agent("Play worker")), says("Is never said."))
    hard = stage.script.add("hard", spends(120_000), says("Is never said."))
    with stage.claude.in_terminal("--permission-mode", "default") as terminal:
        enter(terminal, soft)
        terminal.wait_for("Do you want to proceed?", f"the budget of run {stage.run} is exceeded")
        terminal.press("\x1b")
        terminal.wait_until_gone("Do you want to proceed?")
        assert stage.speakers == ["main-session"] * 2
        stage.next_run(token_budget=100_000, enforcement="hard")
        enter(terminal, hard)
        terminal.wait_for("PostToolBatch says", f"fluxbudgetctl allow --run {stage.run}")
        enter(terminal, soft)
        terminal.wait_for("prompt was not sent", f"to let run {stage.run} go on")
        assert stage.speakers == ["main-session"]
