"""What intercore's database says, as values: every version, every table, and values that are not allowed."""

from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.model import Counts, IcRun, IntercoreReading, PhaseMove, SessionClaim
from fluxbudgetd.sources.intercore import IntercoreDatabase
from harness.intercore import GOAL_CHAIN, IcProject

SECOND = 1_000_000


@pytest.fixture
def project(tmp_path: Path) -> IcProject:
    return IcProject(tmp_path)


def read(project: IcProject, followed: dict[str, int] | None = None) -> IntercoreReading:
    reading = IntercoreDatabase(str(project.database)).read(followed or {})
    assert reading.status.is_readable, reading.status
    return reading


def only(project: IcProject) -> IcRun:
    (run,) = read(project).runs.values()
    return run


@pytest.mark.parametrize("version", [6, 20, 26, 39])
def test_every_version(tmp_path: Path, version: int) -> None:
    """Version 6 cannot enforce a budget, and attributions came with 26."""
    project = IcProject(tmp_path, version)
    run = project.run_create(
        "a goal", scope="bd-1", complexity=4, budget=1000, warn_pct=70, enforce=version >= 20, phases=["a", "b"], at=100
    )
    project.advance(run, at=200)
    project.claim("s1", run, at=150)
    project.dispatch(run, 5, 6, 7, at=170, model="m")
    if version >= 26:
        project.attribute("s2", bead="bd-1", at=160)
    reading = read(project, {run: 0})
    assert reading.schema == version
    assert reading.status.notes == ()
    assert reading.runs == {
        run: IcRun(
            id=run,
            project_dir=str(tmp_path),
            goal="a goal",
            status="completed",
            phase="b",
            phases=("a", "b"),
            complexity=4,
            scope="bd-1",
            token_budget=1000,
            warn_pct=70,
            is_hard=version >= 20,
            created_at=100 * SECOND,
            updated_at=200 * SECOND,
            ended_at=200 * SECOND,
        )
    }
    assert reading.moves == {run: (PhaseMove(1, 200 * SECOND, "a", "b", "advance"),)}
    claims = [SessionClaim("s1", 150 * SECOND, run, None, is_claim=True)]
    if version >= 26:
        claims.append(SessionClaim("s2", 160 * SECOND, None, "bd-1", is_claim=False))
    assert list(reading.claims) == claims
    ((usage,),) = reading.dispatches.values()
    assert (usage.at, usage.agent, usage.model, usage.phase, usage.pending) == (170 * SECOND, "codex", "m", "", False)
    assert usage.counts == Counts(1, 0, 5, 6, 7, 0)
    assert reading.own == {run: None}


def test_migrated_database_is_read_like_a_new_one(tmp_path: Path) -> None:
    project = IcProject(tmp_path, 6)
    run = project.run_create(budget=5)
    before = only(project)
    project.migrate(39)
    assert read(project).schema == 39
    assert only(project) == before
    assert before.id == run


def test_active_and_followed_runs_are_read(project: IcProject) -> None:
    """A followed run that is missing was removed."""
    active, ended, forgotten = (project.run_create() for _ in range(3))
    project.complete(ended, at=300)
    project.cancel(forgotten)
    reading = read(project, {ended: 0, "removed": 0})
    assert set(reading.runs) == {active, ended}
    assert (reading.runs[ended].status, reading.runs[ended].ended_at) == ("completed", 300 * SECOND)


def test_end_follows_the_status(project: IcProject) -> None:
    """Whatever `completed_at` says."""
    active, ended = project.run_create(completed_at=500), project.run_create(status="completed", updated_at=600)
    found = read(project, {ended: 0}).runs
    assert (found[active].ended_at, found[ended].ended_at) == (None, 600 * SECOND)


@pytest.mark.parametrize(("end", "status"), [(IcProject.cancel, "cancelled"), (IcProject.fail, "failed")])
def test_ends(project: IcProject, end: Any, status: str) -> None:
    run = project.run_create()
    end(project, run, at=300)
    found = read(project, {run: 0}).runs[run]
    assert (found.status, found.ended_at) == (status, 300 * SECOND)


def test_revived_run_has_no_end(project: IcProject) -> None:
    run = project.run_create(phases=["a", "b"])
    project.advance(run)
    project.rollback(run, "a")
    assert (only(project).status, only(project).phase, only(project).ended_at) == ("active", "a", None)


def test_two_runs_of_one_bead_and_a_portfolio(project: IcProject) -> None:
    parent = project.run_create(project_dir="")
    runs = [project.run_create(scope="bd-1", parent=parent) for _ in range(2)]
    found = read(project).runs
    assert [found[run].scope for run in runs] == ["bd-1", "bd-1"]
    assert (found[parent].project_dir, found[parent].faults) == ("", ())


def test_chains(project: IcProject) -> None:
    usual, goal = project.run_create(), project.run_create(phases=GOAL_CHAIN)
    found = read(project).runs
    assert (found[usual].phases, found[usual].phase) == (None, "brainstorm")
    assert (found[goal].phases, found[goal].phase) == (GOAL_CHAIN, "goal-formed")
    assert not found[usual].faults


def test_moves_after_the_last_known_one(project: IcProject) -> None:
    """Forwards and backwards. Other events do not move a run."""
    run, other = project.run_create(at=100), project.run_create(at=100)
    project.advance(run, at=110)
    project.advance(other, at=115)
    for kind in ("skip", "block", "pause", "set", "cancel", "budget.warning", "budget.exceeded"):
        project.event(run, kind, at=120)
    project.move(run, "planned", kind="override", at=130)
    project.rollback(run, "brainstorm", at=140)
    moves = read(project).moves[run]
    assert [(move.kind, move.from_phase, move.to_phase, move.at // SECOND) for move in moves] == [
        ("advance", "brainstorm", "brainstorm-reviewed", 110),
        ("override", "brainstorm-reviewed", "planned", 130),
        ("rollback", "planned", "brainstorm", 140),
    ]
    known = read(project, {run: moves[1].number, other: 99})
    assert known.moves == {run: moves[2:]}
    assert known.last_moves == {run: moves[2].number, other: 2}


def test_run_without_moves(project: IcProject) -> None:
    run = project.run_create()
    project.event(run, "skip")
    reading = read(project)
    assert (reading.moves, reading.last_moves) == ({}, {})


def test_latest_claim_of_a_session_counts(project: IcProject) -> None:
    """A claim of a run that is not read counts, too: the session no longer works for the others."""
    first, second, ended = (project.run_create() for _ in range(3))
    project.complete(ended)
    project.claim("s1", first, at=100)
    project.claim("s1", second, at=200)
    project.claim("s2", first, at=100)
    project.claim("s2", ended, at=200)
    project.claim("s3", first, at=100, status="failed")
    project.claim("not a session", first, at=100, agent_type="claude")
    claims = {claim.session: (claim.run, claim.at // SECOND, claim.is_claim) for claim in read(project).claims}
    assert claims == {"s1": (second, 200, True), "s3": (first, 100, True)}


def test_newest_claims_are_read(project: IcProject) -> None:
    """The tables only grow, and sessions that work now are among their newest rows."""
    run = project.run_create()
    project.claim("old", run)
    project.claim("new", run)
    claim = "INSERT INTO run_agents(id, run_id, agent_type, name) VALUES (?, ?, 'session', 'busy')"
    project.write(*((claim, (f"agent{number}", run)) for number in range(1999)))
    assert {claim.session for claim in read(project).claims} == {"new", "busy"}


def test_attributions_count_without_a_claim(project: IcProject) -> None:
    """The latest row of a session counts, even if it names nothing, or something else. A run wins over a bead."""
    first, second = project.run_create(scope="bd-1"), project.run_create(scope="bd-2")
    project.attribute("s1", run=first, at=100)
    project.attribute("s1", run=second, bead="bd-1", at=200)
    project.attribute("s2", bead="bd-1", at=100)
    project.attribute("s3", run=first, at=100)
    project.attribute("s3", at=200)
    project.attribute("s4", run=first, at=100)
    project.attribute("s4", run="elsewhere", bead="bd-1", at=200)
    project.attribute("s5", bead="bd-9", at=100)
    assert set(read(project).claims) == {
        SessionClaim("s1", 200 * SECOND, second, "bd-1", is_claim=False),
        SessionClaim("s2", 100 * SECOND, None, "bd-1", is_claim=False),
    }


def test_claim_wins_over_an_attribution_while_its_run_is_active(project: IcProject) -> None:
    """The attribution is made for the whole machine, and may name the wrong session."""
    first, second = project.run_create(), project.run_create()
    project.claim("s1", first, at=100)
    project.attribute("s1", run=second, at=200)
    assert [claim.run for claim in read(project, {first: 0}).claims] == [first]
    project.complete(first)
    assert [claim.run for claim in read(project, {first: 0}).claims] == [second]
    assert [claim.run for claim in read(project).claims] == [second]
    project.claim("s1", first, at=300)
    assert [claim.run for claim in read(project, {first: 0}).claims] == [first]


def test_dispatches_of_others_and_our_own_row(project: IcProject) -> None:
    """Our rows are never counted again, whatever run they name."""
    run, other = project.run_create(), project.run_create()
    one = project.dispatch(run, 1, 2, at=100, completed_at=200)
    project.dispatch(run, None, None, status="running", agent="claude", at=300)
    project.dispatch(None, 50, 50)
    project.dispatch(run, 10, 20, 30, dispatch=f"fluxbudget-{run}", agent="fluxbudget")
    project.dispatch(run, 10, 20, 30, dispatch=f"fluxbudget-{other}", agent="codex")
    project.dispatch(run, 10, 20, 30, agent="fluxbudget")
    reading = read(project)
    finished, running = sorted(reading.dispatches[run], key=lambda usage: usage.at or 0)
    assert (finished.at, finished.pending, finished.counts.billing) == (200 * SECOND, False, 3)
    assert (running.at, running.pending, running.agent) == (300 * SECOND, True, "claude")
    assert other not in reading.dispatches
    assert reading.own == {run: Counts(1, 0, 10, 20, 30, 0), other: Counts(1, 0, 10, 20, 30, 0)}
    project.update("dispatches", one, input_tokens=100)
    again = next(usage for usage in read(project).dispatches[run] if not usage.pending)
    assert (again.key, again.input) == (finished.key, 100)


@pytest.mark.parametrize("odd", [None, "many", b"\xff", -5, 1.5])
def test_odd_counts_of_our_own_row_differ_from_what_we_write(project: IcProject, odd: object) -> None:
    run = project.run_create()
    project.dispatch(run, odd, 20, 30, dispatch=f"fluxbudget-{run}", agent="fluxbudget")
    found = read(project).own[run]
    assert found is not None
    assert (found.input < 0, found.output, found.cache_read) == (True, 20, 30)


@pytest.mark.parametrize("odd", ["many", b"\xff\0", -5, 1.5, 2.0**70])
def test_odd_counts_of_a_dispatch_count_as_0(project: IcProject, odd: object) -> None:
    run = project.run_create()
    project.dispatch(run, odd, 20, odd)
    reading = read(project)
    assert [usage.counts for usage in reading.dispatches[run]] == [Counts(1, 0, 0, 20, 0, 0)]
    assert reading.status.notes == ("2 token counts of dispatches are invalid and count as 0",)


@pytest.mark.parametrize(
    ("column", "odd", "field", "expected"),
    [
        ("token_budget", -1, "token_budget", None),
        ("token_budget", "much", "token_budget", None),
        ("token_budget", b"\xff", "token_budget", None),
        ("token_budget", 1.5, "token_budget", None),
        ("token_budget", 1e300, "token_budget", None),
        ("budget_warn_pct", 0, "warn_pct", 80),
        ("budget_warn_pct", 100, "warn_pct", 80),
        ("budget_warn_pct", "x", "warn_pct", 80),
        ("budget_enforce", 2, "is_hard", False),
        ("budget_enforce", "yes", "is_hard", False),
        ("complexity", 0, "complexity", 1),
        ("complexity", 99, "complexity", 5),
        ("complexity", "hard", "complexity", 3),
        ("phase", "", "phase", "brainstorm"),
        ("phase", "a|b", "phase", "brainstorm"),
        ("phase", "x" * 65, "phase", "brainstorm"),
        ("phase", "x" * 100_000, "phase", "brainstorm"),
        ("phases", "[]", "phases", None),
        ("phases", '["a", "a"]', "phases", None),
        ("phases", '["a", 1]', "phases", None),
        ("phases", '["a,b"]', "phases", None),
        ("phases", "[" * 5000, "phases", None),
        ("phases", b"\xff", "phases", None),
        ("phases", 7, "phases", None),
        ("project_dir", "relative", "project_dir", "PROJECT"),
        ("project_dir", 5, "project_dir", "PROJECT"),
        ("project_dir", "/a\0b", "project_dir", "PROJECT"),
        ("created_at", "yesterday", "created_at", 900 * SECOND),
        ("created_at", -1, "created_at", 900 * SECOND),
        ("created_at", 2**62, "created_at", 900 * SECOND),
    ],
)
def test_odd_value_is_replaced_and_reported(
    project: IcProject, column: str, odd: object, field: str, expected: object
) -> None:
    run = project.run_create(at=900)
    project.update("runs", run, **{column: odd})
    found = only(project)
    assert getattr(found, field) == (str(project.root) if expected == "PROJECT" else expected)
    assert len(found.faults) == 1
    assert column in found.faults[0]
    assert len(found.faults[0]) < 400


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"token_budget": 0}, {"token_budget": None}),
        ({"token_budget": 5.0}, {"token_budget": 5}),
        ({"budget_warn_pct": None}, {"warn_pct": 80}),
        ({"budget_enforce": None}, {"is_hard": False}),
        ({"scope_id": ""}, {"scope": None}),
        ({"scope_id": b"bd-\xff"}, {"scope": "bd-\uefff"}),
        ({"scope_id": 12}, {"scope": "12"}),
        ({"phases": ""}, {"phases": None}),
        ({"goal": "g" * 5000}, {"goal": "g" * 4096}),
        ({"goal": b"\xff"}, {"goal": "\uefff"}),
        ({"updated_at": None}, {"updated_at": 100 * SECOND}),
    ],
)
def test_unusual_value_is_no_fault(project: IcProject, columns: dict[str, Any], expected: dict[str, object]) -> None:
    if "updated_at" in columns:
        project.execute("ALTER TABLE runs RENAME COLUMN updated_at TO old_updated_at")
        project.execute("ALTER TABLE runs ADD COLUMN updated_at INTEGER")
        project.execute(
            "INSERT INTO runs(id, project_dir, goal, created_at) VALUES ('r', ?, 'a goal', 100)", str(project.root)
        )
    else:
        project.update("runs", project.run_create(at=100), **columns)
    found = only(project)
    assert {field: getattr(found, field) for field in expected} == expected
    assert found.faults == ()


def test_status_that_we_do_not_know_is_active(project: IcProject) -> None:
    run = project.run_create(status="paused")
    found = read(project, {run: 0}).runs[run]
    assert (found.status, found.ended_at) == ("active", None)
    assert found.faults == ("status 'paused' is not allowed: 'active' is used instead",)


def test_odd_events_claims_and_times(project: IcProject) -> None:
    """They are left out and counted. An event without a time is as old as its run."""
    run = project.run_create(at=100)
    project.event(run, "advance", to_phase="a|b")
    project.event(run, "advance", to_phase="planned", created_at="soon")
    project.claim("s1", run, created_at="soon")
    project.claim(None, run)
    project.claim("x" * 600, run)
    project.claim("x" * 100_000, run)
    project.dispatch(run, 5, created_at="soon", completed_at="later")
    reading = read(project)
    assert reading.moves == {run: (PhaseMove(2, 100 * SECOND, "brainstorm", "planned", "advance"),)}
    assert reading.claims == ()
    assert [usage.at for usage in reading.dispatches[run]] == [None]
    assert reading.status.notes == (
        "1 phase events have no valid phase",
        "1 rows of run_agents have no valid time",
    )


def test_ids_that_are_not_ours_to_use(project: IcProject) -> None:
    """They are in `runs`, so that they can be reported, without anything that belongs to them."""
    for odd in ("größe", 'a"b', "a\nb", b"\xff"):
        project.write(("INSERT INTO runs(id, project_dir, goal) VALUES (CAST(? AS TEXT), '/p', '')", (odd,)))
    run = project.run_create()
    project.dispatch(run, 5)
    reading = read(project, {'a"b': 0, "größe": 0})
    assert set(reading.runs) == {run, "größe", 'a"b', "a\nb", "\uefff"}
    assert set(reading.own) == {run, 'a"b'}
    assert set(reading.dispatches) == {run}


def test_number_of_active_runs_is_limited(project: IcProject) -> None:
    """The newest are read, and followed ones in any case."""
    project.write(
        *(("INSERT INTO runs(id, project_dir, goal) VALUES (?, '/p', '')", (f"run{number}",)) for number in range(1005))
    )
    reading = read(project, {"run0": 0})
    assert len(reading.runs) == 1001
    assert {"run0", "run1004", "run5"} <= set(reading.runs)
    assert "run4" not in reading.runs
    assert reading.status.notes == ("more than 1000 active runs: the others are not read",)


def test_only_the_newest_moves_are_read(project: IcProject) -> None:
    """A run that was moved without end costs no more than one that was moved often, and its phase is right."""
    run = project.run_create()
    values = [(run, f"p{number}", f"p{number + 1}", "advance", 200) for number in range(600)]
    sql = "INSERT INTO phase_events(run_id, from_phase, to_phase, event_type, created_at) VALUES (?, ?, ?, ?, ?)"
    project.write(*((sql, each) for each in values))
    reading = read(project)
    moves = reading.moves[run]
    assert (len(moves), moves[0].to_phase, moves[-1].to_phase) == (500, "p101", "p600")
    assert moves[-1].number == reading.last_moves[run]
    assert f"run {run}: its 100 oldest new phase events are not read" in reading.status.notes
