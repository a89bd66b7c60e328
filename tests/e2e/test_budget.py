"""What a budget does in real sessions: the model is warned, and a hard one refuses sub-agents."""

import json

import pytest

from harness.claude_code.script import Turn, Usage, agent, bash, says
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

BUDGET = 100_000
#: Waits until the first response is counted: its line is written while its tools run.
WAIT = 'until [ "$(fluxbudgetctl remaining)" -lt 50000 ]; do sleep 0.02; done'


def spends(tokens: int) -> Turn:
    """Return a turn that uses this many tokens, which are counted before the next turn."""
    return says("Spends.", bash(WAIT), usage=Usage(input=tokens - 1_000, output=1_000))


def test_warning_is_in_the_next_request(stage: Stage) -> None:
    """In no other one: the model is told once."""
    stage.next_run(token_budget=BUDGET)
    stage.play(stage.script.add("warned", spends(85_000), says("Goes on.", bash("true")), says("Done.")))
    words = f"fluxbudget: 80 % of the budget spent: run {stage.run}, phase brainstorm: 85 000 of 100 000"
    heard = [json.dumps(response.request["messages"]).count(words) for response in stage.api.responses]
    assert heard == [0, 1, 1]  # each request repeats the conversation


def test_exhausted_hard_budget_refuses_sub_agents(stage: Stage) -> None:
    """The model reads the reason, no sub-agent starts, and nothing stays reserved."""
    stage.next_run(token_budget=BUDGET, enforcement="hard")
    stage.script.add("worker", says("Works."), agent="general-purpose")
    launches = [agent("Play worker"), agent("Play worker", background=True)]
    stage.play(stage.script.add("refused", spends(120_000), says("Launches.", *launches), says("Gives up.")))
    assert [response.agent for response in stage.api.responses] == ["main-session"] * 3
    results = stage.api.responses[-1].request["messages"][-1]["content"]
    denied = [block for block in results if block["type"] == "tool_result" and block.get("is_error")]
    assert len(denied) == 2
    assert all(f"run {stage.run}" in json.dumps(block["content"]) for block in denied), denied
