"""`allow`: a person lets a run go on once although its hard budget is exhausted."""

import json

from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber
from harness.hooks import Claude, write_usage
from harness.sandbox import SANDBOX
from harness.sandboxed import run_under, sandboxed

EXHAUSTED = "budget_exceeded|brainstorm|1200/1000 billing tokens"


def exhausted(home: Home) -> Claude:
    started(home, id="r1", session="s1", token_budget=1000, enforcement="hard")
    write_usage(home, 1200)
    assert home.ctl("check", "--run", "r1").returncode == 1
    return Claude(home)


def is_stopped(home: Home) -> bool:
    """Return True if the run is stopped, on which everything that can be refused must agree."""
    claude = Claude(home)
    stopped = bool(claude.call("PostToolBatch").stop)
    assert (claude.call("UserPromptSubmit", prompt="go on").decision == "block") == stopped
    check = home.ctl("check", "--run", "r1")
    assert (check.returncode, check.stdout) == ((1, f"{EXHAUSTED}\n") if stopped else (0, "ok\n"))
    return stopped


def test_ten_percent_is_allowed_by_default(home: Home, daemon: Daemon) -> None:
    exhausted(home)
    assert is_stopped(home)
    with Subscriber(home) as stream:
        assert home.ok("allow", "--run", "r1") == "r1: allowed to go on up to 1300 billing tokens"
        event = stream.until("budget.allowed")
    assert event.data == {
        "tokens": None, "minutes": None, "allowed_to": 1300, "allowed_until": None,
        "phase": "brainstorm", "spent": 1200, "budget": 1000,
    }  # fmt: skip
    assert not is_stopped(home)
    spend = home.spend("r1")
    assert (spend.budget, spend.spent, spend.remaining, spend.pct, spend.state) == (1000, 1200, 100, 120.0, "exceeded")
    write_usage(home, 100, message="m2")
    assert Claude(home).call("PostToolBatch").stop


def test_allowed_tokens_admit_what_fits(home: Home, daemon: Daemon) -> None:
    claude = exhausted(home)
    found = home.json("allow", "--run", "r1", "--tokens", "50000")
    assert (found["changed"], found["run"]["allowed_to"], found["run"]["allowed_until"]) == (True, 51_200, None)
    assert claude.launch().decision == ""
    assert claude.launch("fd-safety").decision == "deny"


def test_allowed_minutes_and_a_restart(home: Home, daemon: Daemon) -> None:
    """An allowance is kept in the ledger."""
    claude = exhausted(home)
    assert home.ok("allow", "--run", "r1", "--minutes", "10").startswith("r1: allowed to go on until 2")
    assert not is_stopped(home)
    assert claude.launch().decision == ""
    assert daemon.stop() == 0
    home.start()
    assert not is_stopped(home)
    assert "allowed to go on until 2" in home.ok("run", "show", "--run", "r1")


def test_advance_goes_on_with_an_allowance(home: Home, daemon: Daemon) -> None:
    exhausted(home)
    assert home.ctl("advance", "--run", "r1", "--from", "brainstorm").returncode == 1
    home.ok("allow", "--run", "r1")
    assert home.ok("advance", "--run", "r1", "--from", "brainstorm") == "advanced|brainstorm|brainstorm-reviewed"


def test_allowed_time_counts_for_a_review(home: Home, daemon: Daemon) -> None:
    """What remains is 0 all the while, because the budget is spent."""
    exhausted(home)
    agents = json.dumps({"agents": [{"name": "fd-safety", "score": 5, "stage": 1}]})
    assert home.ctl("triage", "--run", "r1", stdin=agents).returncode == 1
    home.ok("allow", "--run", "r1", "--minutes", "10")
    assert json.loads(home.ctl("triage", "--run", "r1", stdin=agents).stdout)["verdict"] == "ok"


@sandboxed
def test_allowance_reaches_a_sandbox_without_sockets(home: Home, daemon: Daemon) -> None:
    """There, the state file answers."""
    exhausted(home)

    def checked() -> tuple[int, str]:
        result = run_under(SANDBOX, home, "check", "--run", "r1")
        return result.returncode, result.stdout

    wait_for(lambda: checked() == (1, f"{EXHAUSTED}\n"), "the sandbox to be refused")
    home.ok("allow", "--run", "r1")
    wait_for(lambda: checked() == (0, "ok\n"), "the sandbox to see the allowed tokens")
    write_usage(home, 100, message="m2")
    wait_for(lambda: checked()[0] == 1, "the sandbox to be refused again")
    home.ok("allow", "--run", "r1", "--minutes", "10")
    wait_for(lambda: checked() == (0, "ok\n"), "the sandbox to see the allowed time")


def test_another_budget_ends_the_allowance(home: Home, daemon: Daemon) -> None:
    exhausted(home)
    home.ok("allow", "--run", "r1", "--minutes", "10")
    home.ok("run", "set", "--run", "r1", "--budget", "1001")
    assert home.ctl("check", "--run", "r1").stdout == "budget_exceeded|brainstorm|1200/1001 billing tokens\n"


def test_run_that_nothing_stops_is_left_alone(home: Home, daemon: Daemon) -> None:
    started(home, id="soft", token_budget=1000)
    started(home, id="unlimited", token_budget="none", enforcement="hard")
    with Subscriber(home) as stream:
        for run, why in (("soft", "has soft enforcement"), ("unlimited", "has no budget")):
            said = home.ok("allow", "--run", run)
            assert said == f"run {run} {why}, so nothing stops it: there is nothing to allow"
            assert home.json("allow", "--run", run)["changed"] is False
        home.ok("run", "finish", "--run", "soft")
        stream.until("run.finished")
        assert "budget.allowed" not in [event.kind for event in stream.events]


def test_amounts_are_checked(home: Home, daemon: Daemon) -> None:
    exhausted(home)
    for words, code in (
        (["--tokens", "0"], 64),
        (["--tokens", "x"], 64),
        (["--minutes", "1.5"], 64),
        (["--tokens", "5", "--minutes", "5"], 64),
        (["--minutes", "10081"], 65),
        (["--tokens", str(2**63)], 65),
        (["--tokens", "9" * 20], 64),
    ):
        assert home.ctl("allow", "--run", "r1", *words).returncode == code, words
    assert home.ctl("allow", "--run", "no-such").returncode == 3
    assert is_stopped(home)
    home.ok("run", "finish", "--run", "r1")
    assert home.ctl("allow", "--run", "r1").returncode == 65
