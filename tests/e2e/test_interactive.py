"""Interactive sessions, in a pseudo-terminal."""

import pytest

from harness.claude_code.script import bash, says
from harness.claude_code.stage import Stage
from harness.terminal import InTerminal

pytestmark = pytest.mark.claude


#: What precedes the line that is being typed. (Submitted lines have an ordinary space.)
PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}\N{NO-BREAK SPACE}"


def enter(terminal: InTerminal, line: str) -> None:
    """Type a line once there is a prompt, and submit it once it is shown."""
    terminal.wait_for(PROMPT)
    terminal.press(line)
    terminal.wait_for(PROMPT + line)
    terminal.press("\r")


def leave(terminal: InTerminal) -> None:
    enter(terminal, "/exit")
    assert terminal.process.wait() == 0


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
