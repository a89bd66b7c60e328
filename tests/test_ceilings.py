"""Sub-agents that use several times their estimate are told to finish, or stopped under hard enforcement."""

import pytest

from harness.admission import write_agent_usage
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber
from harness.hooks import SILENT, Claude, HookOutput

BUDGET = 1_000_000


def over_its_ceiling(home: Home, enforcement: str, tokens: int) -> Claude:
    """Start a run and a sub-agent that has used so many tokens; its estimate is 40 000."""
    started(home, id="r1", session="s1", token_budget=BUDGET, enforcement=enforcement)
    claude = Claude(home)
    assert claude.launch() == SILENT
    claude.starts("a1")
    write_agent_usage(home, "s1", "a1", tokens=tokens)
    return claude


def agent_batch(claude: Claude) -> HookOutput:
    return claude.call("PostToolBatch", agent_id="a1", agent_type="fd-quality")


USED = "used 120 001 billing tokens, more than 3 times the estimate of 40 000"


def test_sub_agent_beyond_its_ceiling_is_told_once(home: Home, daemon: Daemon) -> None:
    claude = over_its_ceiling(home, "soft", 120_001)
    told = agent_batch(claude)
    assert told.context == f"fluxbudget: you have {USED}. Finish now, and report what you have."
    assert told.message == f"fluxbudget: the sub-agent fd-quality of run r1 was told to finish: it has {USED}"
    assert agent_batch(claude) == claude.call("PostToolBatch") == SILENT


def test_hard_enforcement_stops_a_sub_agent_beyond_its_ceiling(home: Home, daemon: Daemon) -> None:
    """It stops only this sub-agent, every time."""
    claude = over_its_ceiling(home, "hard", 120_001)
    with Subscriber(home) as stream:
        for _ in range(2):
            stopped = agent_batch(claude)
            said = f"fluxbudget: the sub-agent fd-quality of run r1 was stopped: it has {USED}"
            assert stopped.stop == stopped.message == said
        assert stream.until("turn.stopped").data["agent"] == "a1"
    assert claude.call("PostToolBatch") == SILENT
    assert claude.call("PostToolBatch", agent_id="a2", agent_type="fd-quality") == SILENT


@pytest.mark.parametrize("enforcement", ["soft", "hard"])
def test_sub_agent_within_its_ceiling_goes_on(home: Home, daemon: Daemon, enforcement: str) -> None:
    claude = over_its_ceiling(home, enforcement, 120_000)
    assert agent_batch(claude) == SILENT


def test_ceiling_is_configured(home: Home, daemon: Daemon) -> None:
    claude = over_its_ceiling(home, "hard", 120_000)
    assert agent_batch(claude) == SILENT
    config = home.root / ".config" / "fluxbudget" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[admission]\nsubagent_ceiling = 1.5\n")
    wait_for(lambda: agent_batch(claude).stop, "the new ceiling to be in force")
    assert "more than 1.5 times" in agent_batch(claude).stop
