"""A hard run stays stopped if the daemon dies or hangs in the middle of a session."""

import signal
from collections.abc import Callable

import pytest

from harness.claude_code.script import Usage, agent, bash, says, spends, tool
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

SMALL = Usage(input=900, output=100)
WORKFLOW = "export const meta = {name: 'one', description: 'One agent', phases: []}\nreturn await agent('Play worker')"


def restart(stage: Stage) -> None:
    stage.daemon.kill()
    stage.daemon = stage.home.start()


def resume(stage: Stage) -> None:
    stage.daemon.signal(signal.SIGCONT)


@pytest.mark.parametrize(("how", "recover"), [("KILL", restart), ("STOP", resume)], ids=["killed", "stopped"])
def test_daemon_is_gone(stage: Stage, how: str, recover: Callable[[Stage], None]) -> None:
    """Launches are denied, the turn ends, and prompts are blocked, until it is back and the person allows more."""
    stage.next_run(token_budget=100_000, enforcement="hard")
    marker = stage.home.socket.parent / "hard" / stage.run
    gone = bash(f"until [ -e '{marker}' ]; do sleep 0.02; done; kill -{how} {stage.daemon.process.pid}")
    stage.script.add("worker", says("Works."), agent="general-purpose")
    launches = (agent("Play worker"), tool("Workflow", script=WORKFLOW))
    turn = stage.script.add("unwatched", spends(120_000, gone, *launches, left=1), says("Is never said."))
    stopped = stage.claude.run(turn)
    assert stage.speakers == ["main-session"]
    assert len(stopped.refusals) == len(launches), stopped.refusals
    assert stopped.ending == "hook_stopped"
    assert stage.run in stopped.shown

    more = stage.script.add("more", says("Goes on.", usage=SMALL))
    blocked = stage.claude.run(more, "--resume", stopped.id)
    assert stage.run in blocked.shown
    assert stage.speakers == ["main-session"]

    recover(stage)
    stage.play(more, "--resume", stopped.id)
    assert stage.speakers == ["main-session"]
    stage.home.ok("allow", "--run", stage.run, "--tokens", "50000")
    stage.play(more, "--resume", stopped.id)
    assert stage.speakers == ["main-session"] * 2
    assert not any(stage.heard("fluxbudgetctl allow"))
