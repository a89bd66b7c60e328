"""An exhausted hard budget is a stop: for the turn, for prompts, and for everything that launches sub-agents."""

import pytest

from harness.claude_code.script import Usage, agent, bash, message, says, spends, tool
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

BUDGET = 100_000
SMALL = Usage(input=900, output=100)
WORKFLOW = "export const meta = {name: 'one', description: 'One agent', phases: []}\nreturn await agent('Play worker')"


def require_secret(stage: Stage) -> None:
    """Require that the model has read nowhere how the limit can be lifted."""
    for words in ("fluxbudgetctl allow", "run set", "--budget"):
        assert not any(stage.heard(words)), words


def test_turn_ends_prompts_are_blocked_and_an_allowance_lets_it_go_on(stage: Stage) -> None:
    """No request reaches the API in between, and only the person reads how to go on."""
    stage.next_run(token_budget=BUDGET, enforcement="hard")
    stopped = stage.play(stage.script.add("long", spends(120_000), says("Is never said.")))
    assert stopped.ending == "hook_stopped"
    assert f"fluxbudgetctl allow --run {stage.run}" in stopped.shown
    assert len(stage.speakers) == 1

    more = stage.script.add("more", says("Goes on.", bash("true"), usage=SMALL), says("Done.", usage=SMALL))
    blocked = stage.play(more, "--resume", stopped.id)
    assert blocked.ending is None
    assert f"the budget of run {stage.run} is exhausted" in blocked.shown
    assert len(stage.speakers) == 1
    assert "turn.stopped" in stage.events

    stage.home.ok("allow", "--run", stage.run, "--tokens", "50000")
    assert stage.play(more, "--resume", stopped.id).ending == "completed"
    assert len(stage.speakers) == 3
    assert "budget.allowed" in stage.events
    require_secret(stage)


def test_all_tools_that_launch_are_denied(stage: Stage) -> None:
    """The model reads why, no sub-agent starts, and nothing stays reserved."""
    stage.next_run(token_budget=BUDGET, enforcement="hard")
    stage.script.add("worker", says("Works.", usage=SMALL), agent="general-purpose")
    launches = (
        agent("Play worker"),
        agent("Play worker", background=True),
        tool("Workflow", script=WORKFLOW),
        message("Play worker"),
    )
    first = says("Starts.", agent("Play worker"), usage=SMALL)
    refused = stage.play(stage.script.add("refused", first, spends(120_000, *launches)))
    assert stage.speakers == ["main-session", "general-purpose", "main-session"]
    assert len(refused.refusals) == len(launches)
    assert all(f"the budget of run {stage.run} is exhausted" in refusal for refusal in refused.refusals)
    assert refused.ending == "hook_stopped"
    assert "launch.denied" in stage.events
    require_secret(stage)


def test_end_of_a_background_task_is_reported(stage: Stage) -> None:
    """The sub-agent exhausts the budget after the turn of its parent has ended; its result must not be lost."""
    stage.next_run(token_budget=BUDGET, enforcement="hard")
    stage.script.add("worker", spends(110_000), says("Has worked.", usage=SMALL), agent="general-purpose")
    launch = says("Starts.", agent("Play worker", background=True), usage=SMALL)
    stage.play(stage.script.add("delegates", launch, says("Started.", usage=SMALL), says("Noted.", usage=SMALL)))
    assert stage.speakers.count("general-purpose") == 2
    assert stage.heard("Has worked.", by="main-session")[-1] > 0
    require_secret(stage)
