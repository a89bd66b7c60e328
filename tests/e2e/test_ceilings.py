"""Sub-agents that use far more than was estimated."""

import pytest

from harness.claude_code.script import Usage, agent, bash, says, spends
from harness.claude_code.stage import Stage

pytestmark = pytest.mark.claude

SMALL = Usage(input=900, output=100)


@pytest.mark.parametrize("enforcement", ["hard", "soft"])
def test_sub_agent_far_above_its_estimate(stage: Stage, enforcement: str) -> None:
    """It is told to finish. Under hard enforcement it is stopped; its parent goes on."""
    stage.next_run(token_budget=1_000_000, enforcement=enforcement)
    work = [spends(130_000, left=900_000), says("Goes on.", bash("true"), usage=SMALL), says("Done.", usage=SMALL)]
    stage.script.add("worker", *work, agent="general-purpose")
    launch = says("Starts.", agent("Play worker"), usage=SMALL)
    session = stage.play(stage.script.add("delegates", launch, says("Noted.", usage=SMALL)))
    assert session.ending == "completed"
    if enforcement == "hard":
        assert stage.speakers == ["main-session", "general-purpose", "main-session"]
    else:
        assert stage.speakers.count("general-purpose") == 3
        told = stage.heard("the estimate of", by="general-purpose")
        assert told == [0, 1, 1]
