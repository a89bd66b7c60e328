"""What the model and the person are told about a budget in real sessions."""

import pytest

from harness.claude_code.script import Usage, agent, bash, says, spends
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

BUDGET = 100_000
SMALL = Usage(input=900, output=100)


def test_warning_is_in_the_next_request(stage: Stage) -> None:
    """It is in no other request: the model is told once."""
    stage.next_run(token_budget=BUDGET)
    stage.play(stage.script.add("warned", spends(85_000), says("Goes on.", bash("true")), says("Done.")))
    words = f"fluxbudget: 80 % of the budget spent: run {stage.run}, phase brainstorm: 85 000 of 100 000"
    assert stage.heard(words) == [0, 1, 1]  # each request repeats the conversation


def test_sub_agent_and_its_session_are_each_warned(stage: Stage) -> None:
    """A warning inside a sub-agent does not use up the session's own."""
    stage.next_run(token_budget=BUDGET)
    stage.script.add("worker", spends(85_000), says("Works.", usage=SMALL), agent="general-purpose")
    launch = says("Starts.", agent("Play worker"), usage=SMALL)
    stage.play(stage.script.add("warned", launch, says("Noted.", bash("true"), usage=SMALL), says("Done.")))
    words = f"fluxbudget: 80 % of the budget spent: run {stage.run}"
    assert stage.heard(words, by="general-purpose") == [0, 1]
    assert stage.heard(words, by="main-session") == [0, 1, 1]


def test_exceeded_soft_budget_only_warns(stage: Stage) -> None:
    """In print mode, a question would be a denial, so the launch goes on."""
    stage.next_run(token_budget=BUDGET)
    stage.script.add("worker", says("Works.", usage=SMALL), agent="general-purpose")
    launch = says("Starts.", agent("Play worker"), usage=SMALL)
    session = stage.play(stage.script.add("warned", spends(120_000), launch, says("Done.")))
    assert stage.speakers == ["main-session"] * 2 + ["general-purpose", "main-session"]
    assert stage.heard(f"the budget of run {stage.run} is exceeded")[-1] > 0
    assert f"fluxbudgetctl run set --run {stage.run}" in session.shown
    assert not any(stage.heard("run set"))


def test_session_without_a_run_is_told_once_how_to_start_one(stage: Stage) -> None:
    """When it is resumed, it is not told again."""
    stage.home.ok("run", "finish", "--run", stage.run)
    hello = stage.script.add("hello", says("Hello.", bash("true")), says("Done."))
    session = stage.claude.run(hello)
    stage.claude.run(hello, "--resume", session.id)
    assert stage.heard("fluxbudgetctl run start") == [1] * 4
