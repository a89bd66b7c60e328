"""Intercore runs: runs that were started by hand for them, their sessions, and other programs' dispatches."""

import time
from pathlib import Path

import pytest

from fluxbudgetd.model import Attachment, Counts, SessionClaim
from fluxbudgetd.policy import claims
from fluxbudgetd.wire import messages
from harness.adoption import World, check
from harness.interstat import Interstat
from harness.service import within

NOW = int(time.time())
SECOND = 1_000_000


def attached(world: World, session: str) -> list[tuple[str, int, str]]:
    """Return a session's attachments: the run, the time from which usage counts, and the origin."""
    return [(each.run, each.counts_from, each.origin) for each in world.service.accounts.session(session).attachments]


@pytest.mark.parametrize("named_by", ["id", "scope"])
def test_run_that_was_started_by_hand_is_linked(tmp_path: Path, named_by: str) -> None:
    """It keeps its id and what was set by hand; everything else follows the row. There is no second run."""

    async def body(world: World) -> None:
        asked = messages.RunStart(
            id="by-hand0", scope="b-1" if named_by == "scope" else None, project_dir="/elsewhere", token_budget=777
        )
        hand = (await world.service.lifecycle.start(asked, within(60))).run
        run = "by-hand0" if named_by == "id" else "ic-run00"
        world.project.run_create(run=run, scope="b-1", budget=1000, warn_pct=60, enforce=True)
        world.project.advance(run)
        await world.refresh()
        assert set(world.service.accounts.runs) == {"by-hand0"}
        found = world.run("by-hand0")
        assert (found.scope, found.token_budget, found.warn_pct, found.enforcement) == ("b-1", 777, 60, "hard")
        assert (found.phase, found.started_at) == ("brainstorm-reviewed", hand.started_at)
        assert (world.adoption("by-hand0").run_id, world.adoption("by-hand0").kept) == (run, ("token_budget",))
        # A hook that repeats the start still finds it.
        assert (await world.service.lifecycle.start(asked, within(60))).run.id == "by-hand0"
        world.project.advance(run)
        world.project.complete(run)
        await world.refresh()
        assert (world.run("by-hand0").phase, world.run("by-hand0").status) == ("strategized", "done")

    check(tmp_path, body)


def test_of_two_rows_the_newest_gets_the_run_started_by_hand(tmp_path: Path) -> None:
    """The other one becomes a separate run."""

    async def body(world: World) -> None:
        asked = messages.RunStart(id="by-hand0", scope="b-1", project_dir="/elsewhere")
        await world.service.lifecycle.start(asked, within(60))
        old = world.project.run_create(scope="b-1", at=NOW - 100)
        new = world.project.run_create(scope="b-1", at=NOW - 50)
        await world.refresh()
        assert set(world.service.accounts.runs) == {"by-hand0", old}
        assert world.adoption("by-hand0").run_id == new

    check(tmp_path, body)


def test_claim_attaches_the_whole_session(tmp_path: Path) -> None:
    """The first claim reaches back to the session's beginning; usage from before the run counts."""

    async def body(world: World) -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=100, output_tokens=0, timestamp="2026-01-01T00:00:00Z")
        run = world.project.run_create(budget=1000)
        world.project.claim("s1", run)
        await world.refresh()
        assert attached(world, "s1") == [(run, 0, "claim")]
        standing = await world.service.totals.standing(world.account(run), within(60))
        assert standing.balance.spent == 100
        (event,) = await world.events(run, "run.changed")
        assert (event.data["attached"], event.data["via"]) == ("s1", "intercore")
        interstat.close()

    check(tmp_path, body)


def test_attributions_by_run_and_by_bead(tmp_path: Path) -> None:
    """Attributions attach, too. A bead means the run whose scope it is; an unknown bead means none."""

    async def body(world: World) -> None:
        run = world.project.run_create(scope="b-1")
        other = world.project.run_create()
        world.project.attribute("s1", bead="b-1")
        world.project.attribute("s2", run=other)
        world.project.attribute("s3", bead="b-9")
        await world.refresh()
        assert attached(world, "s1") == [(run, 0, "claim")]
        assert attached(world, "s2") == [(other, 0, "claim")]
        assert "s3" not in world.service.accounts.sessions

    check(tmp_path, body)


def test_claim_moves_a_session_between_runs(tmp_path: Path) -> None:
    """From the claim's time on, the session's usage belongs to the claimed run. What it used before stays."""

    async def body(world: World) -> None:
        first = world.project.run_create(at=NOW - 100)
        second = world.project.run_create(at=NOW - 100)
        world.project.claim("s1", first, at=NOW - 90)
        await world.refresh()
        world.project.claim("s1", second, at=NOW - 50)
        await world.refresh()
        assert attached(world, "s1") == [(first, 0, "claim"), (second, (NOW - 50) * SECOND, "claim")]
        await world.refresh()
        assert len(attached(world, "s1")) == 2

    check(tmp_path, body)


def test_hard_run_keeps_its_session(tmp_path: Path) -> None:
    """A claim does not take a session out of an active hard run; a finding says so."""

    async def body(world: World) -> None:
        hard = world.project.run_create(enforce=True, at=NOW - 100)
        other = world.project.run_create(at=NOW - 100)
        world.project.claim("s1", hard, at=NOW - 90)
        await world.refresh()
        world.project.claim("s1", other, at=NOW - 50)
        await world.refresh()
        assert attached(world, "s1") == [(hard, 0, "claim")]
        (report,) = world.service.adoption.databases
        (finding,) = report.findings
        assert f"session s1 stays in run {hard}" in finding

    check(tmp_path, body)


@pytest.mark.parametrize(
    ("current", "at", "expected"),
    [
        ([], 100, [("r", 100, None, 0)]),
        ([("r", 50, None, 50)], 100, [("r", 50, None, 0)]),
        ([("r", 50, None, 0)], 100, []),
        ([("x", 50, None, 0)], 100, [("x", 50, 100, 0), ("r", 100, None, 100)]),
        ([("x", 50, 60, 0)], 100, [("r", 100, None, 100)]),
        ([("x", 50, 60, 0), ("r", 60, None, 60)], 100, []),
        ([("x", 150, None, 150)], 100, []),  # attached later
        ([("r", 50, 150, 0)], 100, []),  # detached later
        ([("r", 50, 60, 0)], 100, [("r", 100, None, 100)]),
    ],
)
def test_claims(
    current: list[tuple[str, int, int | None, int]], at: int, expected: list[tuple[str, int, int | None, int]]
) -> None:
    """What a claim for the run `r` writes: run, since, until, and the time from which usage counts, in seconds."""

    def attachment(run: str, since: int, until: int | None, counts_from: int) -> Attachment:
        return Attachment(
            session="s",
            run=run,
            since=since * SECOND,
            until=None if until is None else until * SECOND,
            counts_from=counts_from * SECOND,
            origin="asked",
        )

    made = claims.attachments(
        SessionClaim("s", at * SECOND, "r", None, True), "r", [attachment(*each) for each in current]
    )
    seen = [(each.run, each.since, each.until, each.counts_from) for each in made]
    assert seen == [
        (run, since * SECOND, None if until is None else until * SECOND, counts_from * SECOND)
        for run, since, until, counts_from in expected
    ]


def test_claim_within_the_second_of_an_attachment() -> None:
    """A claim in the same second as an attachment comes after it: intercore's times are whole seconds."""
    current = Attachment(session="s", run="x", since=100 * SECOND + 7, until=None, counts_from=0, origin="asked")
    ended, new = claims.attachments(SessionClaim("s", 100 * SECOND, "r", None, True), "r", [current])
    assert (ended.until, new.since) == (100 * SECOND + 8, 100 * SECOND + 8)


def test_dispatches_of_others_count_in_the_phase_of_their_time(tmp_path: Path) -> None:
    """They are measured usage without a session. A dispatch still counts after its row was deleted."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000, at=NOW - 100)
        world.project.advance(run, at=NOW - 50)
        early = world.project.dispatch(run, 100, 10, 7, at=NOW - 80)
        world.project.dispatch(run, 200, 20, at=NOW - 20)
        await world.refresh()
        account = world.account(run)
        assert {phase: counts.billing for phase, counts in account.by_phase().items()} == {
            "brainstorm": 110,
            "brainstorm-reviewed": 220,
        }
        # Measured usage of the completed phase takes the place of its estimate.
        assert account.balance().spent == 330
        assert list(account.own_cells()) == []
        world.project.delete("dispatches", early)
        world.project.dispatch(run, 1, 1)
        await world.refresh()
        assert account.balance().spent == 332
        world.project.dispatch(run, 900, 0)
        await world.refresh()
        await world.service.thresholds.reported(account, within(60))
        assert [event.kind for event in await world.events(run) if event.kind.startswith("budget.")][-1] == (
            "budget.exceeded"
        )

    check(tmp_path, body)


def test_row_of_ours_is_no_usage_of_others(tmp_path: Path) -> None:
    """What we have written back is not counted again, whatever it says."""

    async def body(world: World) -> None:
        run = world.project.run_create(budget=1000)
        world.project.dispatch(run, 500, 0, dispatch=f"fluxbudget-{run}", agent="fluxbudget")
        await world.refresh()
        assert world.account(run).measured() == Counts()

    check(tmp_path, body)


def test_end_of_a_row_does_not_end_a_hard_run_by_hand(tmp_path: Path) -> None:
    """A session that may not finish an exceeded hard run cannot do so by a row of its own, either."""

    async def body(world: World) -> None:
        asked = messages.RunStart(
            id="by-hand0", scope="b-1", project_dir="/elsewhere", token_budget=100, enforcement="hard"
        )
        await world.service.lifecycle.start(asked, within(60))
        run = world.project.run_create(scope="b-1", budget=1_000_000)
        world.project.dispatch(run, 150, 50, 0)
        await world.refresh()
        assert world.account("by-hand0").balance().state == "exceeded"
        world.project.cancel(run)
        await world.refresh()
        assert world.run("by-hand0").status == "active"
        (finding,) = world.service.adoption.databases[0].findings
        assert finding == "run by-hand0 is cancelled there, but hard and exceeded: end it yourself"
        await world.service.lifecycle.change(world.account("by-hand0"), messages.RunSet(token_budget=1000), within(60))
        world.project.update("runs", run, goal="still cancelled")
        await world.refresh()
        assert world.run("by-hand0").status == "cancelled"

    check(tmp_path, body)
