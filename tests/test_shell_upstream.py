"""Each fault of Clavain's library that our functions correct: it shows with the library alone, and not with ours."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.daemon import Daemon, Home, started
from harness.hooks import Claude
from harness.interstat import Interstat
from harness.shells import CLAVAIN, INIT, LIBRARY, Ended, Shell

ALONE = f". '{LIBRARY}'"
REPAIRED = f"{ALONE}\n{INIT}"
TOKENS: dict[str, Any] = {"input_tokens": 15_000, "output_tokens": 10_000}


@pytest.fixture(params=("bash", "zsh"))
def shell(home: Home, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(home, request.param, tmp_path_factory)


@pytest.fixture
def sprint(home: Home, interstat: Interstat, daemon: Daemon) -> str:
    """Start a run of the bead `b-1` that has used 25 000 of 100 000 tokens; return its id."""
    run = started(home, scope="b-1", session="s1", token_budget=100_000)
    interstat.insert("s1", **TOKENS, phase="brainstorm")
    return run


def exhaust(interstat: Interstat) -> None:
    interstat.insert("s1", input_tokens=100_000, output_tokens=0, phase="brainstorm")


def test_remaining_is_not_always_0(shell: Shell, sprint: str) -> None:
    """Upstream looks for keys that `ic` does not print."""
    (shell.state / "budget.json").write_text(json.dumps({"run_id": sprint, "budget": 100_000, "used": 25_000}))
    assert shell.lines("sprint_budget_remaining b-1", init=ALONE) == ["0"]
    assert shell.lines("sprint_budget_remaining b-1", init=REPAIRED) == ["75000"]


def test_fresh_shell_sees_what_was_spent(shell: Shell, sprint: str) -> None:
    """Upstream keeps the sum in a variable of the shell."""
    (shell.state / "session-total").write_text("25000")
    environ = {"LIB_BUDGET": "100000"}
    record, left = "sprint_record_phase_tokens b-1 brainstorm", "sprint_budget_left_in_this_shell b-1"
    assert shell.lines(f"{record}; {left}", environ=environ, init=ALONE) == ["75000"]
    assert shell.lines(left, environ=environ, init=ALONE) == ["100000"]
    for script in (f"{record}; sprint_budget_remaining b-1", "sprint_budget_remaining b-1"):
        assert shell.lines(script, environ=environ, init=REPAIRED) == ["75000"]


def test_phases_do_not_count_again(shell: Shell, sprint: str, interstat: Interstat) -> None:
    """Upstream adds the session's cumulative total at each phase, and guesses how much of it was input."""
    script = 'for phase in brainstorm planned; do echo 25000 >"$CLAVAIN_STATE/session-total"; %s; done'
    record = 'sprint_record_phase_tokens b-1 "$phase"'
    shell.lines(script % record, init=ALONE)
    recorded = [line.split() for line in (shell.state / "phase_tokens").read_text().splitlines()]
    assert recorded == [["brainstorm", "15000", "10000"], ["planned", "15000", "10000"]], "one session, twice"
    interstat.insert("s1", input_tokens=7, output_tokens=3, phase="planned")
    script = """
    for phase in brainstorm planned; do sprint_record_phase_tokens b-1 "$phase"; done
    echo $(sprint_stage_tokens_spent b-1 discover) $(sprint_stage_tokens_spent b-1 design)"""
    assert shell.lines(script, init=REPAIRED) == ["25000 10"]
    (tokens,) = shell.lines(f"intercore_run_tokens {sprint}", init=REPAIRED)
    assert (json.loads(tokens)["input_tokens"], json.loads(tokens)["output_tokens"]) == (15_007, 10_003)


def test_error_is_not_a_refusal(shell: Shell, sprint: str) -> None:
    """Upstream takes any failure of `ic` for an exceeded budget."""
    shell.program("ic", "echo 'ic: database is locked' >&2; exit 2")
    environ = {"LIB_RUN": sprint}
    refused = shell.run("sprint_advance b-1 brainstorm", environ=environ, init=ALONE)
    assert (refused.code, refused.out) == (1, "budget_exceeded|brainstorm|?/? billing tokens\n")
    passed = shell.run("sprint_advance b-1 brainstorm", environ=environ, init=REPAIRED)
    assert (passed.code, passed.out) == (0, "Phase: brainstorm -> next []\n")


def test_refusal_is_repeated(shell: Shell, sprint: str, interstat: Interstat) -> None:
    """`ic run budget` refuses once, and then never again."""
    exhaust(interstat)
    shell.program("ic", '[ -e "$CLAVAIN_STATE/refused" ] && exit 0; touch "$CLAVAIN_STATE/refused"; exit 1')
    environ = {"LIB_RUN": sprint}
    codes = [shell.run("sprint_advance b-1 brainstorm", environ=environ, init=ALONE).code for _ in range(2)]
    assert codes == [1, 0]
    refusal = Ended(1, "budget_exceeded|brainstorm|125000/100000 billing tokens\n")
    for _ in range(2):
        assert shell.run("sprint_advance b-1 brainstorm", environ=environ, init=REPAIRED) == refusal


def test_exhausted_sprint_is_constrained(shell: Shell, sprint: str, interstat: Interstat) -> None:
    """The sprint's script exports what is left only if that is more than 0."""
    exhaust(interstat)
    shell.program("clavain-cli", "echo 0")
    script, environ = f". '{CLAVAIN / 'sprint.sh'}'", {"BEAD": "b-1"}
    assert shell.lines(script, environ=environ, init=ALONE) == ["unconstrained"]
    assert shell.lines(script, environ=environ, init=REPAIRED) == ["1"]
    assert shell.lines(script, environ={"BEAD": "none"}, init=REPAIRED) == ["unconstrained"]


def test_remainder_of_a_session_is_that_of_its_run(shell: Shell, sprint: str, home: Home, tmp_path: Path) -> None:
    """Half of 100 000 tokens is left; without our export, interflux's hook takes that for half of 500 000."""
    side_band = tmp_path / "s1.json"
    side_band.write_text(json.dumps({"payload": {"pct_consumed": 50, "session_id": "s1"}}))
    script, environ = f". '{CLAVAIN / 'session-start.sh'}'", {"SIDE_BAND": str(side_band)}
    assert shell.lines(script, environ=environ, init="") == ["250000"]
    variables = tmp_path / "variables"
    variables.write_text("")
    Claude(home).run("SessionStart", environ={"CLAUDE_ENV_FILE": str(variables)}, source="startup")
    assert shell.lines(script, environ=environ, init=f". '{variables}'") == ["50000"]
