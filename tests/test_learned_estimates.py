"""What agents have cost decides which ones a review launches, and whether a session may launch one."""

import json
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.admission import ORACLE, REVIEW, reserved, write_agent_usage
from harness.daemon import Daemon, Home, started
from harness.hooks import SILENT, Claude, write_usage
from harness.interstat import Interstat
from harness.transcripts import Transcript

OPUS, HAIKU = "claude-opus-4-6", "claude-haiku-4-5"
LONG_AGO = "2026-01-01T00:00:00Z"
IN_SESSION = {"CLAUDE_CODE_SESSION_ID": "s1"}
NO_HISTORY = "fluxbudgetctl: using default cost estimates (no history)\n"


def past(interstat: Interstat, billing: int, times: int = 3, agent: str = "fd-x", model: str | None = OPUS) -> None:
    """Insert old rows of an agent, each in a session of its own, with ten times as many tokens in total."""
    for number in range(times):
        interstat.insert(
            f"old-{agent}-{model}-{number}", agent, input_tokens=billing - 10, output_tokens=10,
            total_tokens=billing * 10, model=model, timestamp=LONG_AGO,
        )  # fmt: skip


def triaged(home: Home, *names: str, **given: Any) -> Any:
    """Return the triage of these agents, the first with the highest score; `given` are the client's flags."""
    agents = [{"name": name, "score": -number, "stage": 2} for number, name in enumerate(names)]
    flags = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]
    return home.ctl("triage", *flags, stdin=json.dumps({"agents": agents}), environ=IN_SESSION)


def lines_of(home: Home, *names: str, **given: Any) -> Any:
    """Return the lines of a triage of these agents."""
    return json.loads(triaged(home, *names, **given).stdout)["agents"]


def wait_for_samples(home: Home) -> None:
    """Have the samples of all that has ended taken. A launch waits for that for only 30 ms."""
    assert json.loads(home.ok("estimates"))["history"] != "none"


def rules_of_project(home: Home, text: str) -> None:
    file = home.project / ".claude" / "flux-drive-budget.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)


# --- without history


def test_defaults_are_named_as_such_without_history(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """`triage` and `estimates` say so; `remaining` and hooks do not."""
    started(home, session="s1")
    result = triaged(home, "fd-x")
    assert (result.stderr, json.loads(result.stdout)["history"]) == (NO_HISTORY, "none")
    result = home.ctl("estimates")
    assert (result.stderr, json.loads(result.stdout)["history"]) == (NO_HISTORY, "none")
    assert home.ctl("remaining").stderr == ""
    assert Claude(home).launch("fd-x") == SILENT
    past(interstat, 100, times=1, agent="another")
    result = triaged(home, "fd-x")
    assert (result.stderr, json.loads(result.stdout)["history"]) == ("", "samples")
    assert home.ctl("estimates").stderr == ""


# --- transcripts


def test_transcripts_alone_give_an_estimate(home: Home, daemon: Daemon) -> None:
    """Twelve sub-agents of one name have finished; a thirteenth still works."""
    started(home, session="s1", token_budget=10**9)
    claude = Claude(home)
    for number in range(13):
        claude.starts(f"a{number}", "interflux:fd-x")
        write_agent_usage(home, "s1", f"a{number}", "interflux:fd-x", tokens=1_000 + number)
    for number in range(12):
        claude.stops(f"a{number}", "interflux:fd-x")
    shown = home.json("estimates")
    assert shown["estimates"] == {}
    assert shown["history"] == {
        "fd-x": {
            "est_tokens": 1_006, "est_billing": 1_006, "sample_size": 12, "sliced_tokens": None,
            "sliced_billing": None, "sliced_size": None, "source": "transcripts",
        }
    }  # fmt: skip
    (line,) = lines_of(home, "fd-x")
    assert (line["est_tokens"], line["source"], line["sample_size"]) == (1_006, "transcripts", 12)


def test_sub_agents_that_ended_just_before_the_request_count(home: Home, daemon: Daemon) -> None:
    """No hook has reported them; their last responses end their turns."""
    started(home, session="s1", token_budget=10**9)
    session = Transcript(home.root / "claude", "s1")
    for count in range(3, 13):
        for number in range(3 if count == 3 else 1):
            writer = session.agent(f"a{count}-{number}")
            writer.meta(agentType="fd-x")
            writer.response(f"m{count}-{number}", tokens=(1_000, 0, 0, 0), stop="end_turn")
        answer = home.ask(messages.Estimates(wait_ms=30_000), 30.0)
        assert isinstance(answer, messages.EstimatesAnswer)
        assert answer.history is not None
        assert (answer.history["fd-x"].sample_size, answer.history["fd-x"].est_billing) == (count, 1_000)


# --- triage


def test_triage_uses_its_own_model_then_all(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The model is that of `--model`, else that of the session. Table and report show where an estimate is from."""
    past(interstat, 1_000, model=OPUS)
    past(interstat, 4_000, model=HAIKU)
    for model, found in ((OPUS, (1_000, 3, OPUS)), ("haiku", (4_000, 3, "haiku")), ("sonnet", (2_500, 6, None))):
        (line,) = lines_of(home, "fd-x", model=model)
        assert (line["est_tokens"], line["sample_size"], line["model"]) == found
    started(home, session="s1", token_budget=10**9)
    write_usage(home, 10, model=HAIKU)
    home.ok("remaining")
    decided = json.loads(triaged(home, "interflux:fd-x").stdout)
    (line,) = decided["agents"]
    assert (decided["model"], line["est_billing"], line["est_total"]) == (HAIKU, 4_000, 40_000)
    assert f"interstat (3, {HAIKU})" in triaged(home, "fd-x", table=True).stdout
    (entry,) = home.json("report", "--triage", decided["triage_id"])["agents"]
    assert (entry["source"], entry["sample_size"], entry["model"]) == ("interstat", 3, HAIKU)
    assert f"| interstat (3, {HAIKU}) |" in home.ok("report", "--triage", decided["triage_id"], "--markdown")


def test_full_and_sliced_costs_stay_apart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Full 40 000 and sliced 10 000 are estimated as such before and after `calibrate --write`."""
    past(interstat, 40_000)
    for number in range(12):
        session = f"review-{number}"
        triage = json.dumps({"agents": [{"name": "fd-x", "score": 1, "stage": 1}]})
        home.ctl("triage", "--slicing", stdin=triage, environ={"CLAUDE_CODE_SESSION_ID": session})
        interstat.insert(session, "fd-x", input_tokens=10_000, output_tokens=0, total_tokens=10_000, model=OPUS)
    for _ in range(2):
        (full,), (sliced,) = lines_of(home, "fd-x"), lines_of(home, "fd-x", slicing=True)
        assert (full["est_tokens"], full["sample_size"]) == (40_000, 3)
        assert (sliced["est_tokens"], sliced["sample_size"], sliced["sliced"]) == (10_000, 12, True)
        assert home.json("estimates")["history"]["fd-x"]["sliced_billing"] == 10_000
        home.ok("calibrate", "--write")


def test_calibrated_agent_counts_without_samples(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The ledger with the samples is lost, and so is interstat's file.

    The estimate is not called a default, and admission uses it, too.
    """
    past(interstat, 7_000)
    home.ok("calibrate", "--write")
    daemon.kill()
    interstat.close()
    for path in (*home.interstat.parent.iterdir(), *home.state.glob("ledger.db*")):
        path.unlink()
    home.start()
    result = triaged(home, "fd-x")
    decided = json.loads(result.stdout)
    (line,) = decided["agents"]
    assert (line["est_billing"], line["est_total"], line["source"], line["sample_size"]) == (
        7_000, 70_000, "calibrated", 3,
    )  # fmt: skip
    assert (result.stderr, decided["history"]) == ("", "none")
    assert triaged(home, "fd-x", "fd-y").stderr == NO_HISTORY
    run = started(home, session="s1", token_budget=10**9)
    assert Claude(home).launch("fd-x") == SILENT
    assert reserved(home, run) == 7_000


def test_total_tokens_of_the_run_are_compared_with_total_tokens(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """An agent of 62 500 billing tokens fits into the type's 150 000; its 625 000 in total do not fit into 200 000."""
    past(interstat, 62_500)
    started(home, session="s1", token_budget=200_000, cost_basis="total")
    rules_of_project(home, "min_agents: 0\n")
    result = triaged(home, "fd-x")
    decided = json.loads(result.stdout)
    assert (decided["limit"], decided["sprint_constrained"], decided["cost_basis"]) == ("run", True, "total")
    assert (decided["budget"], decided["type_budget"], decided["sprint_remaining"]) == (200_000, 150_000, 200_000)
    assert decided["deferred"] == {"agents": 1, "est_tokens": 625_000}
    assert decided["summary"] == "Budget: 0K / 200K (0%) | Deferred: 1 agents (625K est.) [sprint-constrained]"
    home.ok("run", "set", "--session", "s1", "--budget", "10000000")
    decided = json.loads(triaged(home, "fd-x").stdout)
    assert (decided["limit"], decided["cost_basis"], decided["budget"]) == ("type", "billing", 150_000)
    assert decided["selected"] == {"agents": 1, "est_tokens": 62_500}


# --- offers


def test_soft_triage_that_defers_offers_to_launch_all(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    past(interstat, 10, agent="another")
    names = [f"fd-{letter}" for letter in "abcde"]
    result = triaged(home, *names)
    assert json.loads(result.stdout)["overridable"] is True
    assert result.stderr == (
        "fluxbudgetctl: 2 agents are deferred; to launch all agents, use --override REASON,"
        " which adds an estimated 80 000 billing tokens\n"
    )
    result = triaged(home, *names, override="release day")
    assert (json.loads(result.stdout)["overridable"], result.stderr) == (False, "")
    result = triaged(home, *names[:3])
    assert (json.loads(result.stdout)["overridable"], result.stderr) == (False, "")
    rules_of_project(home, "enforcement: hard\n")
    result = triaged(home, *names)
    assert (json.loads(result.stdout)["overridable"], result.stderr) == (False, "")


# --- the reaction round


def test_reaction_round_of_a_review(home: Home, daemon: Daemon) -> None:
    """It has a quarter of the input type's budget; the run's remaining budget limits it as well."""
    names = ("fd-a", "fd-b", "fd-c", "fd-safety")
    decided = json.loads(triaged(home, *names, round="reaction").stdout)
    assert (decided["round"], decided["budget"], decided["type_budget"]) == ("reaction", 37_500, 37_500)
    launched = [line["name"] for line in decided["agents"] if line["action"] == "Selected"]
    assert launched == ["fd-safety", "fd-a"]
    assert {line["category"] for line in decided["agents"]} == {"reaction"}
    started(home, session="s1", token_budget=30_000)
    rules_of_project(home, "reaction_budget: {fraction: 0.5, min_agents: 3}\n")
    decided = json.loads(triaged(home, *names, round="reaction").stdout)
    assert (decided["budget"], decided["type_budget"], decided["sprint_constrained"]) == (30_000, 75_000, True)
    assert decided["selected"]["agents"] == 3
    assert home.ctl("triage", "--round", "third", stdin='{"agents": []}').returncode == 64


# --- launches


def test_launch_is_denied_by_the_history_of_another_model(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Five runs of 250 000 tokens under another model do not fit into 100 000."""
    past(interstat, 250_000, times=5, model="another-model")
    started(home, session="s1", token_budget=100_000, enforcement="hard")
    wait_for_samples(home)
    output = Claude(home).launch("interflux:fd-x")
    assert output.decision == "deny"
    assert "fd-x does not fit into the budget of run" in output.reason
    assert "estimated at 250 000 billing tokens (mean of 5), 0 of 100 000" in output.reason


def test_launch_is_estimated_by_its_own_model(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Without one, or if it inherits, it has the model of the session."""
    past(interstat, 1_000, model=OPUS)
    past(interstat, 70_000, model=HAIKU)
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    wait_for_samples(home)
    claude = Claude(home)
    assert claude.launch("fd-x", model="haiku").decision == "deny"
    assert claude.launch("fd-x", model="opus") == SILENT
    assert reserved(home, run) == 1_000
    write_usage(home, 10, model=OPUS)
    assert claude.launch("fd-x") == SILENT
    assert claude.launch("fd-x", model="inherit") == SILENT
    assert reserved(home, run) == 3_000
    assert claude.launch("fd-x", model=HAIKU).decision == "deny"
    assert reserved(home, run) == 3_000


def test_launch_is_what_the_review_has_made_of_the_agent(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A slice costs what slices cost, and a reaction what reactions cost. Before any review, it reads everything."""
    past(interstat, 40_000, times=3)
    run = started(home, session="s1", token_budget=10**9)
    wait_for_samples(home)
    claude = Claude(home)
    assert claude.launch("fd-x") == SILENT
    assert reserved(home, run) == 40_000
    triaged(home, "interflux:fd-x", slicing=True)
    assert claude.launch("interflux:fd-x") == SILENT
    assert reserved(home, run) == 40_000 + 20_000
    triaged(home, "fd-x", round="reaction")
    assert claude.launch("fd-x") == SILENT
    assert reserved(home, run) == 40_000 + 20_000 + 15_000
    assert claude.launch("fd-y") == SILENT
    assert reserved(home, run) == 40_000 + 20_000 + 15_000 + 40_000


def test_launch_learns_from_transcripts_alone(home: Home, daemon: Daemon) -> None:
    """Before three sub-agents of its name have finished, a launch has its category's default."""
    run = started(home, session="s1", token_budget=10**9)
    claude = Claude(home)
    for number in range(3):
        claude.launch("fd-x")
        assert reserved(home, run) == REVIEW
        claude.starts(f"a{number}", "fd-x")
        write_agent_usage(home, "s1", f"a{number}", "fd-x", tokens=2_000)
        claude.stops(f"a{number}", "fd-x")
        assert reserved(home, run) == 0
    home.ok("estimates")
    claude.launch("fd-x")
    assert reserved(home, run) == 2_000
    claude.launch("oracle")
    assert reserved(home, run) == 2_000 + ORACLE


@pytest.mark.parametrize("model", ["x" * 600, "", 7, None, {"name": "opus"}])
def test_unusual_model_of_a_launch_counts_as_none(home: Home, daemon: Daemon, model: object) -> None:
    run = started(home, session="s1", token_budget=50_000, enforcement="hard")
    assert Claude(home).launch("fd-x", model=model) == SILENT
    assert reserved(home, run) == REVIEW
