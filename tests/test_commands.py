"""Command lines that the daemon carries out: exit code, stdout and stderr of every verb."""


import pytest

from harness.commands import Outcome, outcome
from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat

NO_RUN = (
    "fluxbudgetctl: no active run has this directory\n"
    "hint: start one with 'fluxbudgetctl run start', or name it: --run ID\n"
)
REFUSAL = "budget_exceeded|brainstorm|250/100 billing tokens\n"


def no_budget(run: str) -> str:
    return (
        f"fluxbudgetctl: run {run} has no budget\nhint: set one with 'fluxbudgetctl run set --run {run} --budget N'\n"
    )


@pytest.fixture
def runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Runs in every state of their budget, each with the session `s-RUN` and 250 tokens; `ok` has its directory."""
    for name, fields in (
        ("ok", {"token_budget": 1000, "scope": "b-ok"}),
        ("soft", {"token_budget": 100}),
        ("hard", {"token_budget": 100, "enforcement": "hard"}),
        ("unlimited", {"token_budget": "none"}),
    ):
        started(home, id=name, session=f"s-{name}", **fields)
        interstat.insert(f"s-{name}", input_tokens=150, output_tokens=100)


def test_remaining(home: Home, runs: None) -> None:
    assert outcome(home, "remaining", "--run", "ok") == Outcome(0, "750\n")
    assert outcome(home, "remaining", "--run=ok", "--default=7") == Outcome(0, "750\n")
    assert outcome(home, "remaining", "--run", "soft") == Outcome(0, "0\n")
    assert outcome(home, "remaining", "--run", "unlimited") == Outcome(3, "0\n", no_budget("unlimited"))
    assert outcome(home, "remaining", "--run", "unlimited", "--default", "7") == Outcome(
        3, "7\n", no_budget("unlimited")
    )
