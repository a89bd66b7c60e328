"""What launches reserve: nothing stays reserved for one that never started, failed or was stopped."""

import json

import pytest

from harness.claude_code.script import Usage, agent, bash, says
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

SMALL = Usage(input=900, output=100)


def test_launches_that_come_to_nothing(stage: Stage) -> None:
    """The next turn finds nothing reserved. A background task keeps its reservation while it runs."""
    stage.next_run(token_budget=10_000_000, enforcement="hard")

    def noted(name: str) -> dict[str, object]:
        return bash(f"fluxbudgetctl run show --json >{name}.json")

    def reserved(name: str) -> int:
        return int(json.loads((stage.home.project / f"{name}.json").read_text())["spend"]["reserved"])

    huge = Usage(input=399_000, output=1_000)
    stage.script.add("failing", says("", fails=(400,) * 9), agent="general-purpose")
    stage.script.add("greedy", says("Spends.", bash("sleep 0.2"), usage=huge), agent="general-purpose")
    stage.script.add(
        "patient",
        says("Waits.", bash("until [ -e seen ]; do sleep 0.02; done"), usage=SMALL),
        says("Has waited.", usage=SMALL),
        agent="general-purpose",
    )
    turns = [
        says("a", agent("Play nothing", kind="no-such-type"), usage=SMALL),
        says("b", noted("unknown"), agent("Play nothing", kind="Explore"), usage=SMALL),
        says("c", noted("denied"), agent("Play failing"), usage=SMALL),
        says("d", noted("failed"), agent("Play greedy"), usage=SMALL),
        says("e", noted("stopped"), agent("Play patient", background=True), usage=SMALL),
        says("f", noted("running"), bash("touch seen"), usage=SMALL),
        says("g", usage=SMALL),
        says("h", usage=SMALL),
    ]
    session = stage.play(stage.script.add("launches", *turns), "--disallowedTools", "Agent(Explore)")
    assert session.ending == "completed"
    names = ("unknown", "denied", "failed", "stopped")
    assert {name: reserved(name) for name in names} == dict.fromkeys(names, 0)
    assert 0 < reserved("running") <= 40_000
