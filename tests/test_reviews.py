"""Estimates, triage and the cost report, with a real daemon and client."""

import json
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started
from harness.interstat import OLD_SCHEMA, Interstat
from harness.reviews import LONG_AGO, MODEL, agent, past, project_file, triage

IN_SESSION = {"CLAUDE_CODE_SESSION_ID": "s1"}


#: Stage 1 and the exempt agents cost 40 000 each by default, the others 40 000, 35 000 and 15 000.
AGENTS = [
    agent("fd-architecture", 5, 1),
    agent("fd-safety", 1),
    agent("fd-performance", 4),
    agent("fd-systems", 3.5),
    agent("docs-researcher", 2),
]


def selected(decision: Any) -> list[str]:
    return [line["name"] for line in decision["agents"] if line["action"] == "Selected"]


def kept(home: Home) -> list[Any]:
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        return [json.loads(row) for (row,) in connection.execute("SELECT triage FROM triages ORDER BY at")]
    finally:
        connection.close()


# --- estimates


def test_estimates_equal_the_existing_estimator(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The JSON is the same but for `history`, whose samples are of all models.

    Means need three rows of the model or of no model, and round half away from zero.
    """
    for total, model in ((10, MODEL), (11, MODEL), (None, MODEL), (11, None), (9999, "another")):
        interstat.insert("s", "interflux:fd-quality", input_tokens=3, output_tokens=4, total_tokens=total, model=model)
    interstat.insert("s", "fd-quality", input_tokens=4, output_tokens=4, total_tokens=10, model=MODEL)
    past(interstat, "twice", 100, times=2)
    shown = home.ctl("estimates", environ={"CLAUDE_CONFIG_DIR": "/nonexistent"})
    history = json.loads(shown.stdout)["history"]
    assert (history["fd-quality"]["sample_size"], history["twice"]["est_tokens"]) == (5, None)
    assert json.loads(shown.stdout) == {
        "estimates": {"fd-quality": {"est_tokens": 11, "est_billing": 7, "sample_size": 4, "source": "interstat"}},
        "defaults": {"review": 40000, "cognitive": 35000, "research": 15000, "oracle": 80000, "generated": 40000},
        "slicing_multiplier": 1,
        "history": history,
    }
    assert '"slicing_multiplier": 1, "history"' in shown.stdout
    assert home.json("estimates", "--model", "another", "--slicing") == {
        "estimates": {},
        "defaults": {"review": 40000, "cognitive": 35000, "research": 15000, "oracle": 80000, "generated": 40000},
        "slicing_multiplier": 0.5,
        "history": history,
    }


def test_estimates_follow_every_commit(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """An active run, which keeps the file open, makes no difference."""
    past(interstat, "fd-quality", 100)
    assert home.json("estimates")["estimates"]["fd-quality"]["est_billing"] == 100
    started(home)
    for added, mean in ((500, 200), (800, 320)):
        past(interstat, "fd-quality", added, times=1)
        assert home.json("estimates")["estimates"]["fd-quality"]["est_billing"] == mean


def test_estimates_without_history(home: Home) -> None:
    """The defaults are used if the database is absent, which stderr reports, or has no totals."""
    home.start()
    result = home.ctl("estimates")
    assert (result.returncode, json.loads(result.stdout)["estimates"]) == (0, {})
    assert "interstat: absent" in result.stderr
    interstat = Interstat(home.interstat, OLD_SCHEMA)
    result = home.ctl("estimates")
    assert (result.returncode, json.loads(result.stdout)["estimates"]) == (0, {})
    assert result.stderr == "fluxbudgetctl: using default cost estimates (no history)\n"
    interstat.close()


def test_estimates_close_the_database(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Without an active run, the daemon does not keep the file open, so its last writer can remove the WAL."""
    past(interstat, "fd-quality", 100)
    home.ok("estimates")
    interstat.close()
    assert sorted(path.name for path in home.interstat.parent.iterdir()) == ["metrics.db"]


# --- triage


def test_cut_by_the_input_types_budget(home: Home, daemon: Daemon) -> None:
    """There is no run. Of 150 000 tokens, 80 000 are protected and 70 000 are left for Stage 2."""
    decision = triage(home, AGENTS, "--input-type", "plan")
    assert selected(decision) == ["fd-architecture", "fd-safety", "fd-performance", "docs-researcher"]
    assert decision["verdict"] == "ok"
    assert (decision["budget"], decision["sprint_constrained"], decision["run"]) == (150_000, False, None)
    assert decision["selected"] == {"agents": 4, "est_tokens": 135_000}
    assert decision["deferred"] == {"agents": 1, "est_tokens": 35_000}
    assert decision["by_stage"]["stage_1"]["selected"] == {"agents": 1, "est_tokens": 40_000}
    assert decision["summary"] == "Budget: 135K / 150K (90%) | Deferred: 1 agents (35K est.)"


def test_cut_by_the_rest_of_the_sprint(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The tighter budget counts, even if it is 0: an exhausted sprint must not allow unlimited reviews."""
    run = started(home, session="s1", token_budget=200_000)
    row = interstat.insert("s1", input_tokens=80_000, output_tokens=0)
    decision = triage(home, AGENTS, environ=IN_SESSION)
    assert (decision["run"], decision["session"]) == (run, "s1")
    assert (decision["budget"], decision["type_budget"], decision["sprint_remaining"]) == (120_000, 150_000, 120_000)
    assert selected(decision) == ["fd-architecture", "fd-safety", "fd-performance"]
    assert decision["summary"].endswith(" [sprint-constrained]")
    interstat.update(row, input_tokens=999_999)
    decision = triage(home, AGENTS, environ=IN_SESSION)
    assert (decision["budget"], decision["sprint_constrained"], decision["verdict"]) == (0, True, "over_budget")
    assert selected(decision) == ["fd-architecture", "fd-safety"]
    home.ok("run", "set", "--run", run, "--budget", "none")
    decision = triage(home, AGENTS, environ=IN_SESSION)
    assert (decision["budget"], decision["sprint_remaining"]) == (150_000, None)


@pytest.mark.parametrize(("exported", "left"), [("60000", 60_000), ("1", 1), ("0", None), ("many", None), ("-5", None)])
def test_cut_by_an_exported_remainder(home: Home, daemon: Daemon, exported: str, left: int | None) -> None:
    """Without a run, `$FLUX_BUDGET_REMAINING` is what the sprint has left, unless it is 0."""
    environ = {"FLUX_BUDGET_REMAINING": exported}
    decision = triage(home, AGENTS, environ=environ)
    assert (decision["run"], decision["sprint_remaining"]) == (None, left)
    assert (decision["budget"], decision["sprint_constrained"]) == (left or 150_000, left is not None)
    started(home, session="s1", token_budget=200_000)
    assert triage(home, AGENTS, environ={**IN_SESSION, **environ})["sprint_remaining"] == 200_000


def test_cut_under_hard_enforcement(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A protected set that does not fit blocks all agents, and no override is accepted. A set that fits blocks none."""
    started(home, session="s1", token_budget=79_999, enforcement="hard")
    for arguments in ((), ("--override", "please")):
        result = home.ctl("triage", *arguments, stdin=json.dumps({"agents": AGENTS}), environ=IN_SESSION)
        decision = json.loads(result.stdout)
        assert (result.returncode, decision["verdict"], selected(decision)) == (1, "blocked", [])
        assert "enforcement is hard" in result.stderr
        assert decision["override"] is None
    home.ok("run", "set", "--session", "s1", "--budget", "80000")
    assert triage(home, AGENTS, environ=IN_SESSION)["verdict"] == "ok"


def test_override_selects_all(home: Home, daemon: Daemon) -> None:
    decision = triage(home, AGENTS, "--input-type", "diff-small", "--override", "release day")
    assert (decision["verdict"], decision["override"]) == ("overridden", "release day")
    assert len(selected(decision)) == len(AGENTS)
    assert kept(home)[0]["override"] == "release day"


def test_cut_by_measured_costs_and_slicing(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Slicing halves interstat's means, except for two agents that read everything and one with its own setting."""
    past(interstat, "interflux:fd-quality", 10_001)
    past(interstat, "fd-systems", 20_001)
    agents = [agent("fd-quality"), agent("interflux:fd-systems"), agent("fd-people", sliced=False), agent("helper")]
    decision = triage(home, agents, "--slicing")
    found = {line["name"]: (line["est_tokens"], line["source"], line["sliced"]) for line in decision["agents"]}
    assert found == {
        "fd-quality": (10_001, "interstat", False),
        "interflux:fd-systems": (10_001, "interstat", True),  # 10 000.5, half away from zero
        "fd-people": (35_000, "default", False),
        "helper": (20_000, "default", True),
    }
    assert triage(home, [agent("x", category="oracle")])["agents"][0]["est_tokens"] == 80_000


def test_total_tokens_are_cut_by_totals(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    past(interstat, "fd-quality", 100)
    project_file(home, "cost_basis: total\n")
    decision = triage(home, [agent("fd-quality")])
    assert (decision["cost_basis"], decision["agents"][0]["est_tokens"]) == ("total", 1000)


def test_table_for_people(home: Home, daemon: Daemon) -> None:
    result = home.ctl("triage", "--table", stdin=json.dumps({"agents": AGENTS}))
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["AGENT", "CATEGORY", "SCORE", "STAGE", "EST.", "TOKENS", "SOURCE", "ACTION"]
    assert lines[1].split() == ["fd-architecture", "review", "5", "1*", "40000", "default", "Selected"]
    assert lines[5].split() == ["docs-researcher", "research", "2", "2", "15000", "default", "Selected"]
    assert lines[6] == "Budget: 135K / 150K (90%) | Deferred: 1 agents (35K est.)"
    assert lines[7].startswith("verdict: ok, soft, triage-")


def test_ambiguous_run_is_an_error(home: Home, daemon: Daemon) -> None:
    """If it counted as no run, the run's limit would not apply."""
    started(home)
    started(home)
    result = home.ctl("triage", stdin=json.dumps({"agents": AGENTS}))
    assert (result.returncode, result.stdout) == (3, "")
    assert home.ctl("triage", stdin=json.dumps({"agents": []}), environ={"FLUXBUDGET_RUN": "gone"}).returncode == 3
    assert kept(home) == []


BAD = [
    ("", "truncated"), ("{", "truncated"), ("{,}", "malformed"), ("[]", "Expected `object`"),
    ("null", "Expected `object`"), ("{}", "missing required field `agents`"),
    ('{"agents": {}}', "agents: Expected `array`"), ('{"agents": [1]}', "agents[0]: Expected `object`"),
    ('{"agents": [{"name": "a", "stage": 1}]}', "agents[0]: Object missing required field `score`"),
    ('{"agents": [{"name": "a", "score": 1}]}', "agents[0]: Object missing required field `stage`"),
    ('{"agents": [{"score": 1, "stage": 1}]}', "agents[0]: Object missing required field `name`"),
    ('{"agents": [{"name": "a", "score": NaN, "stage": 1}]}', "malformed"),
    ('{"agents": [{"name": "a", "score": 1e999, "stage": 1}]}', "agents"),
    ('{"agents": [{"name": "a", "score": "high", "stage": 1}]}', "agents[0].score: Expected `float`"),
    ('{"agents": [{"name": "a", "score": true, "stage": 1}]}', "agents[0].score: Expected `float`"),
    ('{"agents": [{"name": "a", "score": 1, "stage": "1"}]}', "agents[0].stage: Expected `int`"),
    (json.dumps({"agents": [agent("a"), agent("b", stage=3)]}), "agents[1].stage is 3"),
    (json.dumps({"agents": [agent("a"), agent("b", stage=0)]}), "agents[1].stage is 0"),
    (json.dumps({"agents": [agent("a"), agent("b", stage=2**64)]}), "agents[1].stage is 18446744073709551616"),
    (json.dumps({"agents": [agent("fd-a"), agent("interflux:fd-a")]}), "agents[1].name is 'interflux:fd-a', as ag"),
    (json.dumps({"agents": [agent("")]}), "agents[0].name has 0 bytes"),
    (json.dumps({"agents": [agent("a", category="odd")]}), "agents[0].category is 'odd'"),
    (json.dumps({"agents": [agent(f"a{number}") for number in range(10_000)]}), "agents: 10000 of them"),
    (json.dumps({"agents": [agent("x" * 2_000_000)]}), "more than 1 MiB"),
    ("[" * 100_000, "agents"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_invalid_agents_are_refused(home: Home, daemon: Daemon, number: int) -> None:
    """The exit code is 65, the error names the place, and nothing is stored."""
    text, place = BAD[number]
    result = home.ctl("triage", stdin=text)
    assert (result.returncode, result.stdout) == (65, ""), result
    assert place in result.stderr, result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr
    assert kept(home) == []


def test_unusual_agents_are_accepted(home: Home, daemon: Daemon) -> None:
    """Negative and huge scores, unknown fields, and an empty list."""
    agents = [agent("low", -1e300), agent("high", 1e300, reason="x"), agent("zero", 0), agent("none", -0.0)]
    decision = triage(home, agents)
    assert [line["name"] for line in decision["agents"]] == ["high", "none", "zero", "low"]
    decision = triage(home, [])
    assert decision["summary"] == "Budget: 0K / 150K (0%) | Deferred: 0 agents (0K est.)"
    assert len(triage(home, [agent(f"{'long' * 45}-{number}") for number in range(1000)])["agents"]) == 1000


def test_nan_is_refused(home: Home, daemon: Daemon) -> None:
    """JSON cannot express it, but MessagePack can."""
    for score in (float("nan"), float("inf")):
        one = messages.TriageAgent(name="a", score=score, stage=1)
        answer = home.ask(messages.TriageRequest(agents=(one,)))
        assert isinstance(answer, messages.ErrorAnswer)
        assert (answer.error.code, "agents[0].score" in answer.error.message) == ("bad_input", True)


def test_unknown_input_type_is_refused(home: Home, daemon: Daemon) -> None:
    result = home.ctl("triage", "--input-type", "diff_small", stdin='{"agents": []}')
    assert (result.returncode, result.stdout) == (65, "")
    assert "diff-small" in result.stderr


# --- flux-drive's files


def test_budget_files_key_by_key(home: Home, daemon: Daemon) -> None:
    """Defaults, the plugin's file, the project's file. They are read again for each request."""
    plugin = home.root / "claude/plugins/cache/market/interflux/1.0.0/config/flux-drive/budget.yaml"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("budgets: {plan: 1000, repo: 2000}\nagent_defaults: {oracle: 7}\ndispatch: {odd: [1]}\n")
    assert home.json("estimates")["defaults"]["oracle"] == 7
    file = project_file(home, "budgets: {plan: 500}\nexempt_agents: [lonely]\nmin_agents: 0\n")
    decision = triage(home, [agent("lonely"), agent("fd-safety", 9)], "--input-type", "plan")
    assert (decision["budget"], selected(decision)) == (500, ["lonely"])
    assert triage(home, [], "--input-type", "repo")["budget"] == 2000
    file.write_text("budgets: {plan: 501}\n")
    assert triage(home, [], "--input-type", "plan")["budget"] == 501
    file.unlink()
    assert triage(home, [], "--input-type", "plan")["budget"] == 1000


def test_broken_project_file_affects_only_its_project(home: Home, daemon: Daemon) -> None:
    """The error names file and key; the run's numbers and other projects still work."""
    elsewhere = home.root / "elsewhere"
    elsewhere.mkdir()
    file = project_file(home, "budgets:\n  plan: lots\n")
    run = started(home)
    result = home.ctl("triage", "--run", run, stdin='{"agents": []}')
    assert (result.returncode, result.stdout) == (78, "")
    assert f"{file}: budgets.plan is" in result.stderr
    assert home.ctl("estimates").returncode == 78
    assert home.ok("remaining") == "250000"
    assert home.ctl("estimates", cwd=elsewhere).returncode == 0
    assert home.ctl("estimates", "--project", str(elsewhere)).returncode == 0
    file.write_text("budgets: {plan: 10}\n")
    assert home.ctl("triage", "--run", run, stdin='{"agents": []}').returncode == 0
    assert len(kept(home)) == 1


# --- the report


def test_report_is_completed_as_rows_arrive(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Costs of the session's agents since the triage are first pending, then partial, then complete."""
    interstat.insert("s1", "fd-safety", input_tokens=1, output_tokens=1, timestamp=LONG_AGO)
    decision = triage(home, AGENTS, "--input-type", "plan", environ=IN_SESSION)
    name = decision["triage_id"]
    report = home.json("report", "--triage", name)
    assert report["budget"] == 150_000
    assert report["estimated_total"] == 135_000
    assert {one["actual_billing"] for one in report["agents"]} == {"pending"}
    assert (report["actual_billing"], report["actual_total"], report["cache_read_total"]) == ("pending",) * 3
    assert report["by_stage"]["stage_1"] == {"agents": 1, "estimated": 40000, "actual": "pending", "partial": False}
    assert [(one["name"], one["reason"]) for one in report["deferred"]] == [("fd-systems", "budget")]

    waiting = interstat.insert("s1", "interflux:fd-architecture")
    tokens = {"input_tokens": 50_000, "output_tokens": 1_100, "cache_read_tokens": 900, "cache_creation_tokens": 0}
    interstat.insert("s1", "fd-safety", **tokens)
    interstat.insert("s2", "fd-performance", input_tokens=5, output_tokens=5)  # in another session
    report = home.json("report", "--triage", name)
    found = {one["name"]: one for one in report["agents"]}
    assert found["fd-architecture"]["actual_billing"] == found["fd-performance"]["actual_total"] == "pending"
    safety = found["fd-safety"]
    assert (safety["actual_billing"], safety["actual_total"], safety["cache_read"]) == (51_100, 52_000, 900)
    assert (safety["estimated"], safety["delta_pct"], safety["source"]) == (40_000, 28, "default")
    assert (report["actual_billing"], report["partial"]) == (51_100, True)
    assert report["pending"] == ["fd-architecture", "fd-performance", "docs-researcher"]

    interstat.update(waiting, input_tokens=30_000, output_tokens=0)
    for rest in ("fd-performance", "docs-researcher"):
        interstat.insert("s1", rest, input_tokens=10_000, output_tokens=0)
    report = home.json("report", "--triage", name)
    assert (report["actual_billing"], report["partial"], report["pending"]) == (101_100, False, [])
    assert report["by_stage"]["stage_2"] == {"agents": 3, "estimated": 95000, "actual": 71100, "partial": False}
    people = home.ok("report", "--triage", name, "--markdown")
    assert "| fd-safety | 2 | 40000 | 51100 | 52000 | 900 | +28 % | default |" in people
    assert "pending" not in people.lower()


def test_report_survives_a_restart_and_a_lost_source(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The triage is in the ledger, and so is the usage of a session with a run."""
    started(home, session="s1")
    name = triage(home, AGENTS, environ=IN_SESSION)["triage_id"]
    interstat.insert("s1", "fd-safety", input_tokens=50_000, output_tokens=0)
    assert home.json("report", "--triage", name)["actual_billing"] == 50_000
    home.ok("status")
    daemon.kill()
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.start()
    result = home.ctl("report", "--triage", name)
    assert json.loads(result.stdout)["actual_billing"] == 50_000
    assert "last known numbers: interstat: absent" in result.stderr


def test_report_of_a_run(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """It covers all reviews. A triage that was repeated before any agent ran counts once."""
    run = started(home, session="s1", token_budget=1_000_000)
    triage(home, AGENTS, environ=IN_SESSION)
    first = triage(home, AGENTS, environ=IN_SESSION)
    interstat.insert("s1", "fd-safety", input_tokens=41_000, output_tokens=0)
    second = triage(home, [agent("fd-safety")], environ=IN_SESSION)
    interstat.insert("s1", "fd-safety", input_tokens=42_000, output_tokens=0)
    report = home.json("report", "--run", run)
    assert (report["budget"], report["budget_type"]) == (1_000_000, "run")
    assert report["estimated_total"] == first["selected"]["est_tokens"] + second["selected"]["est_tokens"]
    actual = [one["actual_billing"] for one in report["agents"] if one["name"] == "fd-safety"]
    assert actual == [41_000, 42_000]
    assert len(report["triages"]) == 3


def test_report_of_nothing(home: Home, daemon: Daemon) -> None:
    result = home.ctl("report", "--triage", "gone")
    assert (result.returncode, result.stdout) == (65, "")
    assert "no triage 'gone'" in result.stderr
    assert home.ctl("report", "--run", "gone").returncode == 3
    assert home.json("report", "--run", started(home))["agents"] == []


# --- load, sources and sessions


def test_reviews_do_not_delay_other_requests(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """While the whole history is scanned repeatedly, a run's numbers stay fresh."""
    moment = datetime.now(UTC) - timedelta(days=1)
    rows = [(moment.isoformat(), f"s{n % 500}", f"fd-{n % 40}", 100, 10, 1000, MODEL) for n in range(100_000)]
    interstat.connection.execute("BEGIN")
    interstat.connection.executemany(
        "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens, total_tokens, model) "
        "VALUES (?,?,?,?,?,?,?)",
        rows,
    )
    interstat.connection.execute("COMMIT")
    run = started(home, session="fresh")
    stop = threading.Event()
    failures: list[object] = []

    def review() -> None:
        with Wire(home.socket) as wire:
            while not stop.is_set():
                answer = wire.ask(messages.Estimates(wait_ms=30_000))
                if not isinstance(answer, messages.EstimatesAnswer) or len(answer.estimates) != 40:
                    failures.append(answer)

    thread = threading.Thread(target=review)
    thread.start()
    try:
        for number in range(1, 31):
            interstat.insert("fresh", input_tokens=10, output_tokens=0)
            spend = home.spend(run)
            assert (spend.spent, spend.stale) == (number * 10, False)
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_triage_without_a_session(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The report uses the rows of its run's sessions since the triage. Without a run, it says so."""
    run = started(home, session="s1")
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    interstat.insert("s1", "fd-quality", input_tokens=7, output_tokens=0, timestamp=now)
    interstat.insert("s1", "fd-b", input_tokens=7, output_tokens=0, timestamp="no time")
    name = triage(home, [agent("fd-quality"), agent("fd-b")], "--run", run)["triage_id"]
    assert home.json("report", "--triage", name)["pending"] == ["fd-b", "fd-quality"]
    later = datetime.now(UTC).replace(microsecond=0).isoformat()
    interstat.insert("s1", "fd-b", input_tokens=70, output_tokens=0, timestamp=later)
    assert home.json("report", "--triage", name)["actual_billing"] == 70
    result = home.ctl("triage", stdin='{"agents": []}', cwd=home.root)
    assert result.returncode == 0
    assert "neither session nor run is known" in result.stderr


def test_report_of_very_many_reviews(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The latest are listed; the sums cover all."""
    run = started(home, session="s1", token_budget=10**9)
    for number in range(11):
        agents = tuple(messages.TriageAgent(name=f"a{number}-{n}", score=1, stage=1) for n in range(100))
        home.ask(messages.TriageRequest(agents=agents, run=run))
    report = home.json("report", "--run", run)
    assert (len(report["agents"]), report["not_listed"]) == (1000, 100)
    assert report["by_stage"]["stage_1"]["agents"] == 1100
    assert report["estimated_total"] == 1100 * 40_000


def test_project_file_counts_in_directories_below_the_project(home: Home, daemon: Daemon) -> None:
    """It counts for both `estimates` and `triage`."""
    project_file(home, "agent_defaults: {review: 1000}\n")
    started(home)
    below = home.project / "src"
    below.mkdir()
    assert json.loads(home.ctl("estimates", cwd=below).stdout)["defaults"]["review"] == 1000
    assert json.loads(home.ctl("estimates", "--project", str(below)).stdout)["defaults"]["review"] == 40_000
