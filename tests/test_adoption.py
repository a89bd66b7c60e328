"""Intercore runs, in the service inside the test: adopted, followed, linked, withheld."""

import shutil
import time
from pathlib import Path

import pytest

from fluxbudgetd.policy import loosening
from fluxbudgetd.policy.adoption import CLAVAIN_CHAIN
from fluxbudgetd.wire import messages
from harness.adoption import World, check
from harness.intercore import DEFAULT_CHAIN, GOAL_CHAIN, IcProject
from harness.service import within

HOUR_AGO = int(time.time()) - 3600


@pytest.mark.parametrize("version", [6, 20, 26, 39])
def test_active_run_is_adopted_as_its_row_says(tmp_path: Path, version: int) -> None:
    """Its id, scope, budget, warning percentage, chain and start are intercore's; the cost basis is billing."""

    async def body(world: World) -> None:
        run = world.project.run_create("goal", scope="b-1", budget=1000, warn_pct=70, complexity=9, at=HOUR_AGO)
        await world.refresh()
        found = world.run(run)
        assert (found.id, found.scope, found.goal, found.token_budget, found.warn_pct) == (run, "b-1", "goal", 1000, 70)
        assert (found.complexity, found.phases, found.phase) == (5, DEFAULT_CHAIN, "brainstorm")
        assert (found.started_at, found.status, found.enforcement) == (HOUR_AGO * 1_000_000, "active", "soft")
        assert (found.project_dir, found.cost_basis) == (str(world.project.root), "billing")
        assert found.adopted is not None
        assert (found.adopted.database, found.adopted.run_id) == (str(world.project.database), run)
        (event,) = await world.events(run, "run.started")
        assert event.data["adopted_from"] == str(world.project.database)

    check(tmp_path, body, version)


@pytest.mark.parametrize(
    ("phases", "phase", "chain"),
    [
        (["plan", "build"], "plan", ("plan", "build")),
        (None, "brainstorm", DEFAULT_CHAIN),
        (None, "goal-formed", GOAL_CHAIN),
        (None, "plan-reviewed", CLAVAIN_CHAIN),
        (None, "odd", ("odd", *DEFAULT_CHAIN)),
        (["plan", "build"], "odd", ("odd", "plan", "build")),
    ],
)
def test_chain_of_a_run(tmp_path: Path, phases: list[str] | None, phase: str, chain: tuple[str, ...]) -> None:
    """A run without a list of phases has the chain that its phase belongs to. The phase is always in it."""

    async def body(world: World) -> None:
        run = world.project.run_create(phases=phases, phase=phase)
        await world.refresh()
        assert (world.run(run).phase, world.run(run).phases) == (phase, chain)

    check(tmp_path, body)


def test_phases_forwards_and_backwards(tmp_path: Path) -> None:
    """Each move is applied with intercore's time. A phase that is left by a move back is not completed: estimate 0."""

    async def body(world: World) -> None:
        run = world.project.run_create(at=HOUR_AGO)
        world.project.advance(run, at=HOUR_AGO + 10)
        await world.refresh()
        assert [(each.phase, each.until) for each in world.account(run).completed] == [
            ("brainstorm", (HOUR_AGO + 10) * 1_000_000 + 999_999)
        ]
        assert await world.events(run, "phase.advanced") == []  # before it was adopted
        world.project.advance(run, at=HOUR_AGO + 20)
        world.project.event(run, "block", at=HOUR_AGO + 25)
        world.project.advance(run, at=HOUR_AGO + 30, kind="override")
        world.project.rollback(run, "brainstorm-reviewed", at=HOUR_AGO + 30)
        await world.refresh()
        account = world.account(run)
        assert account.run.phase == "brainstorm-reviewed"
        assert [(each.phase, each.estimate, each.until - HOUR_AGO * 1_000_000) for each in account.completed] == [
            ("brainstorm", 30_000, 10_999_999),
            ("brainstorm-reviewed", 15_000, 20_999_999),
            ("strategized", 25_000, 30_999_999),
            ("planned", 0, 31_000_000),
        ]
        moves = [
            (event.data["from"], event.data["to"], event.data["kind"])
            for event in await world.events(run, "phase.advanced")
        ]
        assert moves == [
            ("brainstorm-reviewed", "strategized", "advance"),
            ("strategized", "planned", "override"),
            ("planned", "brainstorm-reviewed", "rollback"),
        ]
        world.project.advance(run)
        await world.refresh()
        # `brainstorm-reviewed` was completed twice, but costs its estimate once.
        assert account.balance().provisional == 30_000 + 15_000 + 25_000

    check(tmp_path, body)


def test_a_lost_move_is_made_up_for(tmp_path: Path) -> None:
    """If no event leads to the row's phase, the run moves there at the time of the row's last change."""

    async def body(world: World) -> None:
        run = world.project.run_create(at=HOUR_AGO)
        await world.refresh()
        world.project.update("runs", run, phase="planned", updated_at=HOUR_AGO + 60)
        await world.refresh()
        (record,) = world.account(run).completed
        assert (world.run(run).phase, record.phase, record.until) == (
            "planned",
            "brainstorm",
            (HOUR_AGO + 60) * 1_000_000 + 999_999,
        )
        world.project.update("runs", run, phase="strategized")
        await world.refresh()
        (*_, event) = await world.events(run, "phase.advanced")
        assert (event.data["to"], event.data["kind"]) == ("strategized", "rollback")

    check(tmp_path, body)


@pytest.mark.parametrize(("end", "status"), [("complete", "done"), ("cancel", "cancelled"), ("fail", "cancelled")])
def test_end_and_revival(tmp_path: Path, end: str, status: str) -> None:
    """A run ends as its row does, and is active again if its row is."""

    async def body(world: World) -> None:
        run = world.project.run_create(phases=["a", "b", "c"], budget=1000)
        await world.refresh()
        getattr(world.project, end)(run)
        await world.refresh()
        assert (world.run(run).status, world.run(run).ended_at is None) == (status, False)
        assert world.service.accounts.active() == []
        (event,) = await world.events(run, "run.finished")
        assert event.data["status"] == status
        world.project.move(run, "a", kind="rollback")
        await world.refresh()
        assert (world.run(run).status, world.run(run).ended_at) == ("active", None)
        assert [account.run.id for account in world.service.accounts.active()] == [run]
        assert world.service.accounts.followed(0) == world.service.accounts.active()

    check(tmp_path, body)


def test_run_that_a_person_has_ended_stays_ended(tmp_path: Path) -> None:
    """`run finish` is kept, whatever intercore says."""

    async def body(world: World) -> None:
        run = world.project.run_create()
        await world.refresh()
        await world.service.lifecycle.end(world.account(run), "done", within(60))
        world.project.advance(run)
        await world.refresh()
        assert world.run(run).status == "done"
        assert world.adoption(run).kept == ("status",)

    check(tmp_path, body)


def test_settings_are_followed_until_a_person_sets_them(tmp_path: Path) -> None:
    """Budget, warning percentage and enforcement follow the row; `run set` wins from then on."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.refresh()
        world.project.set(run, token_budget=2000, budget_warn_pct=60)
        await world.refresh()
        assert (world.run(run).token_budget, world.run(run).warn_pct) == (2000, 60)
        await world.service.lifecycle.change(world.account(run), messages.RunSet(token_budget=500), within(60))
        world.project.set(run, token_budget=9000, budget_warn_pct=50, budget_enforce=1)
        await world.refresh()
        found = world.run(run)
        assert (found.token_budget, found.warn_pct, found.enforcement) == (500, 50, "hard")
        assert world.adoption(run).kept == ("token_budget",)

    check(tmp_path, body)


def test_a_hard_run_is_not_loosened_by_its_row(tmp_path: Path) -> None:
    """More budget and soft enforcement are reported once and wait for a person; less budget applies at once."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000, enforce=True)
        await world.refresh()
        assert world.run(run).enforcement == "hard"
        for _ in range(2):
            world.project.set(run, token_budget=2000, budget_enforce=0)
            await world.refresh()
        found = world.run(run)
        assert (found.token_budget, found.enforcement) == (1000, "hard")
        assert world.adoption(run).withheld == {"token_budget": 2000, "enforcement": "soft"}
        loosened = await world.events(run, "run.loosened")
        assert [(event.data["action"], event.data["withheld"]) for event in loosened] == [
            ("raise", "yes"),
            ("soften", "yes"),
        ]
        world.project.set(run, token_budget=800)
        await world.refresh()
        assert (world.run(run).token_budget, world.adoption(run).withheld) == (800, {"enforcement": "soft"})
        world.project.set(run, token_budget=None)
        await world.refresh()
        assert world.adoption(run).withheld == {"enforcement": "soft", "token_budget": None}
        # A person confirms it.
        account = world.account(run)
        await world.service.lifecycle.change(account, messages.RunSet(token_budget="none"), within(60))
        assert (account.run.token_budget, world.adoption(run).withheld) == (None, {"enforcement": "soft"})
        assert len(await world.events(run, "run.loosened")) == 4

    check(tmp_path, body)


def test_two_active_runs_of_one_bead(tmp_path: Path) -> None:
    """The bead means the newer run and, when that ends, the other one again. No usage moves between them."""

    async def body(world: World) -> None:
        old = world.project.run_create(scope="b-1", at=HOUR_AGO)
        new = world.project.run_create(scope="b-1", at=HOUR_AGO + 60)
        await world.refresh()
        accounts = world.service.accounts
        assert accounts.run_of_scope("b-1") is world.account(new)
        assert [accounts.has_scope(world.run(run)) for run in (old, new)] == [False, True]
        world.project.complete(new)
        await world.refresh()
        assert accounts.run_of_scope("b-1") is world.account(old)
        assert accounts.has_scope(world.run(old))

    check(tmp_path, body)


def test_portfolio_parent_is_not_adopted(tmp_path: Path) -> None:
    """It has no project. It is shown, and not reported as a problem."""

    async def body(world: World) -> None:
        parent = world.project.run_create(project_dir="")
        child = world.project.run_create(parent=parent)
        await world.refresh()
        assert set(world.service.accounts.runs) == {child}
        (report,) = world.service.adoption.databases
        assert (report.portfolios, report.findings, report.runs) == ((parent,), (), (child,))

    check(tmp_path, body)


def test_copied_project(tmp_path: Path) -> None:
    """The copy's row of a known run is not adopted, and a finding names both databases."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        await world.refresh()
        copy = tmp_path / "copy"
        shutil.copytree(world.project.root, copy)
        IcProject(copy).set(run, token_budget=5)
        await world.refresh(copy)
        assert (world.run(run).token_budget, world.run(run).project_dir) == (1000, str(world.project.root))
        reports = {report.path: report for report in world.service.adoption.databases}
        (finding,) = reports[str(copy / ".clavain/intercore.db")].findings
        assert str(world.project.database) in finding
        assert str(copy / ".clavain/intercore.db") in finding

    check(tmp_path, body)


def test_copied_project_that_is_seen_first(tmp_path: Path) -> None:
    """A row whose project has another database is not adopted from the copy."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        copy = tmp_path / "copy"
        shutil.copytree(world.project.root, copy)
        own = IcProject(copy).run_create(project_dir=str(copy))
        await world.refresh(copy)
        assert set(world.service.accounts.runs) == {own}
        await world.refresh()
        assert world.adoption(run).database == str(world.project.database)

    check(tmp_path, body)


def test_two_projects_with_one_id(tmp_path: Path) -> None:
    """The first one that is seen is adopted; a finding names both."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        other = IcProject(tmp_path / "other")
        other.run_create(run=run, budget=5)
        await world.refresh()
        await world.refresh(other.root)
        assert (world.run(run).token_budget, world.run(run).project_dir) == (1000, str(world.project.root))
        reports = {report.path: report for report in world.service.adoption.databases}
        (finding,) = reports[str(other.database)].findings
        assert (
            finding
            == f"run {run} of {other.database} is not adopted: {world.project.database} has a run with this id, too"
        )

    check(tmp_path, body)


def test_moved_project(tmp_path: Path) -> None:
    """A run whose directory no longer exists is adopted where its database is."""

    async def body(world: World) -> None:
        run = world.project.run_create()
        moved = tmp_path / "moved"
        world.project.root.rename(moved)
        await world.refresh(moved)
        assert world.run(run).project_dir == str(moved)

    check(tmp_path, body)


def test_ids_that_are_not_allowed(tmp_path: Path) -> None:
    """Such a run is not adopted, and a finding says why. The others are."""

    async def body(world: World) -> None:
        world.project.run_create(run="-rf a b")
        fine = world.project.run_create()
        await world.refresh()
        assert set(world.service.accounts.runs) == {fine}
        (report,) = world.service.adoption.databases
        (finding,) = report.findings
        assert "'-rf a b' is not allowed" in finding

    check(tmp_path, body)


def test_odd_values_are_findings(tmp_path: Path) -> None:
    """A followed run keeps its phase if the row's phase is not a valid one."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        world.project.advance(run)
        await world.refresh()
        world.project.update("runs", run, phase="a|b", budget_warn_pct=700)
        await world.refresh()
        assert (world.run(run).phase, world.run(run).warn_pct) == ("brainstorm-reviewed", 80)
        (report,) = world.service.adoption.databases
        assert [finding.split(": ")[0] for finding in report.findings] == [f"run {run}", f"run {run}"]

    check(tmp_path, body)


def test_restored_backup(tmp_path: Path) -> None:
    """The numbers of phase events go back; later moves are followed all the same."""

    async def body(world: World) -> None:
        run = world.project.run_create()
        world.project.advance(run)
        backup = world.project.database.read_bytes()
        world.project.advance(run)
        world.project.advance(run)
        await world.refresh()
        assert world.run(run).phase == "planned"
        world.project.database.write_bytes(backup)
        await world.refresh()
        assert (world.run(run).phase, world.adoption(run).last_move) == ("brainstorm-reviewed", 1)
        world.project.advance(run)
        await world.refresh()
        assert (world.run(run).phase, world.adoption(run).last_move) == ("strategized", 2)

    check(tmp_path, body)


def test_end_of_an_exceeded_hard_run_is_reported(tmp_path: Path) -> None:
    """Its sessions may go on without a limit, so this is a loosening, caused by intercore."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=100, enforce=True)
        world.project.dispatch(run, 200, 0)
        await world.refresh()
        world.project.complete(run)
        await world.refresh()
        (event,) = await world.events(run, "run.loosened")
        assert (event.data["action"], event.data["via"], event.data["spent"]) == ("finish", "intercore", 200)
        assert loosening.line(world.run(run), event).endswith("finished while its budget was exceeded, by intercore")

    check(tmp_path, body)
