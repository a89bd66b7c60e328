"""Decisions while a source is read or the ledger is written: nothing is missed or guessed."""

import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fluxbudgetd.decisions.admission import Launch
from fluxbudgetd.errors import BadInputError, LedgerError, NoRunError, RequestTimeoutError
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.ledger.usage import StoredUsage
from fluxbudgetd.model import BudgetThreshold, Run
from fluxbudgetd.policy import attribution
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.transcript_store import TranscriptStore
from fluxbudgetd.wire import messages
from harness.hooks import timestamp
from harness.interstat import Interstat
from harness.service import service_over, until, within
from harness.transcripts import Transcript
from harness.values import an_estimate


def insert_many(interstat: Interstat) -> None:
    """Commit enough rows of one session to be summed in a thread; none has a readable time."""
    interstat.connection.execute("BEGIN")
    for _ in range(300):
        interstat.insert("s1", bead_id="b1", timestamp="garbage", input_tokens=1, output_tokens=0)
    interstat.connection.execute("COMMIT")


def test_warning_is_given_while_the_refresh_that_brought_its_numbers_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transcript has been read, interstat's file has not: the new numbers count, and their warning is given."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            asked = messages.RunStart(project_dir="/p", session="s1", token_budget=1000)
            run, *_ = await service.lifecycle.start(asked, within(60))
            account = service.accounts.runs[run.id]
            assert (await service.totals.standing(account, within(60))).stale_why is None
            source.hang()
            Transcript(tmp_path, "s1").response(tokens=(900, 0, 0, 0))
            service.totals.request_refresh("s1")
            await until(lambda: account.balance().spent == 900)
            # Just after a file was created, its directory counts as changed. This test starts after that.
            monkeypatch.setattr(TranscriptStore, "changed", lambda *_arguments, **_options: False)
            await service.thresholds.reported(account, within(60))
            reminder = await service.session_warnings.next_for(account, "s1", None, within(60))
            assert reminder is not None
            assert reminder.event is not None
            assert reminder.event.kind == "budget.warning"
            reminder.finish(True)
        interstat.close()

    anyio.run(body)


def test_threshold_that_a_copy_in_another_runs_session_makes_a_run_pass_is_reported(tmp_path: Path) -> None:
    """The copy completes the response of a session whose own transcript does not change."""

    async def body() -> None:
        async with service_over(tmp_path, follows=False) as (service, _source):
            begun = await service.lifecycle.start(
                messages.RunStart(project_dir="/p", session="s1", token_budget=1000), within(60)
            )
            forked = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s2"), within(60))
            account, other = service.accounts.runs[begun[0].id], service.accounts.runs[forked[0].id]
            Transcript(tmp_path, "s1").response(tokens=(100, 1, 0, 0), request="r1")
            await service.totals.standing(account, within(60))
            Transcript(tmp_path, "s2").response(tokens=(100, 900, 0, 0), request="r1")
            await service.totals.standing(other, within(60))
            assert account.balance().spent == 1000
            await until(lambda: BudgetThreshold("budget.threshold", 100) in account.fired)

    anyio.run(body)


def test_threshold_that_is_passed_while_another_is_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further commit or request is needed."""
    may_go_on = anyio.Event()
    save = StoredRuns.save

    async def slow_save(stored: StoredRuns, run: Run, **arguments: Any) -> None:
        await save(stored, run, **arguments)
        if arguments.get("fired"):
            await may_go_on.wait()

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir="/p", session="s1", token_budget=1000)
            run, *_ = await service.lifecycle.start(asked, within(60))
            account = service.accounts.runs[run.id]
            monkeypatch.setattr(StoredRuns, "save", slow_save)
            interstat.insert("s1", input_tokens=600, output_tokens=0)
            await service.totals.standing(account, within(60))
            await until(lambda: service.events.last >= 2)
            interstat.insert("s1", input_tokens=360, output_tokens=0)
            await service.totals.standing(account, within(60))
            may_go_on.set()
            await until(lambda: BudgetThreshold("budget.threshold", 95) in account.fired)
        interstat.close()

    anyio.run(body)


@pytest.mark.parametrize("when", ["before", "after"])
def test_reservation_shrinks_even_if_the_ledger_was_too_slow_at_its_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The daemon later reads what the sub-agents have used, without another request.

    What is used meanwhile counts once, whether the ledger was read before or after that.
    """
    of_sub_agents = TranscriptStore.of_sub_agents
    may_go_on = anyio.Event()

    async def slow(store: TranscriptStore, session: str) -> Any:
        if when == "before":
            found = tuple(await of_sub_agents(store, session))
            await may_go_on.wait()
            return found
        await may_go_on.wait()
        return await of_sub_agents(store, session)

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir="/p", session="s1", token_budget=100_000)
            run, *_ = await service.lifecycle.start(asked, within(60))
            account = service.accounts.runs[run.id]
            monkeypatch.setattr(TranscriptStore, "of_sub_agents", slow)
            await service.admission.admit(account, "s1", Launch("fd-quality"), an_estimate(40_000), has_person=False)
            writer = Transcript(tmp_path, "s1").agent("a1")
            writer.meta(agentType="fd-quality")
            writer.response(tokens=(900, 0, 0, 0), at=timestamp())
            await service.totals.standing(account, within(60))
            assert account.reserved == 40_000
            may_go_on.set()
            await until(lambda: account.reserved == 39_100)
        interstat.close()

    anyio.run(body)


def test_token_is_never_both_spent_and_reserved(tmp_path: Path) -> None:
    """A token is always either reserved or spent when another task can run."""
    seen = set()

    async def observe(account: RunAccount) -> None:
        while True:
            balance = account.balance()
            seen.add(balance.spent + balance.reserved)
            await anyio.lowlevel.checkpoint()

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source), anyio.create_task_group() as tasks:
            asked = messages.RunStart(project_dir="/p", session="s1", token_budget=100_000)
            run, *_ = await service.lifecycle.start(asked, within(60))
            account = service.accounts.runs[run.id]
            await service.admission.admit(account, "s1", Launch("fd-quality"), an_estimate(40_000), has_person=False)
            await service.admission.start(account, "s1", "fd-quality", "a1", 40_000)
            await service.totals.standing(account, within(60))
            tasks.start_soon(observe, account)
            writer = Transcript(tmp_path, "s1").agent("a1")
            for number in range(100):
                writer.response(f"m{number}", tokens=(number, 0, 0, 0), at=timestamp())
                await service.totals.standing(account, within(60))
            assert account.balance().spent == sum(range(100))
            tasks.cancel_scope.cancel()
        interstat.close()

    anyio.run(body)
    assert seen == {40_000}


def test_detaching_a_session_that_cannot_be_read_in_time_is_a_timeout(tmp_path: Path) -> None:
    """The session's rows, which have not been read, may attach it to a run."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            await service.lifecycle.start(messages.RunStart(project_dir="/p", scope="bead"), within(60))
            interstat.insert("s1", input_tokens=1, output_tokens=0, bead_id="bead")
            source.hang()
            with pytest.raises(RequestTimeoutError):
                await service.attachments.detach("s1", None, within(0.05))
            source.resume()
            await service.attachments.detach("s1", None, within(60))
            with pytest.raises(BadInputError):
                await service.attachments.detach("s1", None, within(60))
        interstat.close()

    anyio.run(body)


def test_run_is_not_fresh_until_the_rows_of_a_session_that_joined_are_read(tmp_path: Path) -> None:
    """Its transcripts have been read, and interstat has not changed since the run was read last."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s2", input_tokens=77, output_tokens=0)
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            account = service.accounts.runs[run.id]
            assert (await service.totals.standing(account, within(60))).stale_why is None
            await service.attachments.attach("s2", account, within(60), whole=True)
            source.hang()
            assert await anyio.to_thread.run_sync(source.hanging.wait, 60)
            standing = service.totals.standing_now(run.id, None, None, messages.Hints())
            assert standing is None or standing.balance.spent == 77
            source.resume()
            standing = await service.totals.standing(account, within(60))
            assert (standing.balance.spent, standing.stale_why) == (77, None)
        interstat.close()

    anyio.run(body)


def test_session_that_was_read_too_late_belongs_to_the_run_that_starts(tmp_path: Path) -> None:
    """Its rows name the new run's scope. They were read but not kept, so they are read again."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", bead_id="b1", input_tokens=30, output_tokens=0)
        async with service_over(tmp_path) as (service, source):
            await service.lifecycle.start(messages.RunStart(project_dir="/p", scope="another"), within(60))
            source.hang()
            with pytest.raises(NoRunError):
                await service.totals.find(None, None, "s1", messages.Hints(), within(0.05))
            source.resume()
            await until(lambda: "s1" in service.accounts.sessions)
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/q", scope="b1"), within(60))
            account = await service.totals.find(None, None, "s1", messages.Hints(), within(60))
            standing = await service.totals.standing(account, within(60))
            assert (standing.run.id, standing.balance.spent, standing.stale_why) == (run.id, 30, None)
        interstat.close()

    anyio.run(body)


def test_run_that_starts_while_the_ledger_cannot_be_read_counts_known_rows_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that name its scope move to it, although only the ledger still has them. Before that, it has no numbers."""

    async def failing(_stored: StoredUsage, _scope: str) -> list[str]:
        raise LedgerError("disk I/O error", "check the disk")

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=10, output_tokens=0)
        interstat.insert("s1", bead_id="b1", input_tokens=32, output_tokens=0)
        interstat.close()
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir="/p", session="s1", whole=True)
            first, *_ = await service.lifecycle.start(asked, within(60))
            assert (await service.totals.standing(service.accounts.runs[first.id], within(60))).balance.measured == 42
            (tmp_path / "metrics.db").unlink()
            with monkeypatch.context() as patched:
                patched.setattr(StoredUsage, "sessions_naming", failing)
                second, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/q", scope="b1"), within(60))
                with pytest.raises(RequestTimeoutError):
                    await service.totals.standing(service.accounts.runs[second.id], within(60))
            for run, measured in ((first, 10), (second, 32)):
                standing = service.totals.standing_now(run.id, None, None, messages.Hints())
                assert standing is None or standing.balance.measured == measured
            accounts = [service.accounts.runs[run.id] for run in (first, second)]
            standings = await service.totals.standings(accounts, within(60))
            assert [standing.balance.measured for standing in standings] == [10, 32]

    anyio.run(body)


@pytest.mark.parametrize("restarted", [False, True])
def test_run_that_advances_while_a_session_is_summed_counts_it_in_its_new_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """Rows without a readable time count in the current phase. The sum for the phase before is discarded.

    The session is not known to have usage of the run yet, so the advance does not sum it again.
    """
    tally = attribution.tally
    summed, may_go_on = threading.Event(), threading.Event()

    def held(*arguments: Any) -> Any:
        sums = tally(*arguments)
        if threading.current_thread() is not threading.main_thread():
            summed.set()
            may_go_on.wait(60)
        return sums

    async def check(service: Service, run: Run) -> None:
        account = service.accounts.runs[run.id]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.totals.standing, account, within(60))
            assert await anyio.to_thread.run_sync(summed.wait, 60)
            await service.checks.advance(account, run.phase, None, None)
            may_go_on.set()
        assert (await service.totals.standing(account, within(60))).stale_why is None
        assert {phase: counts.input for phase, counts in account.by_phase().items()} == {run.phases[1]: 300}
        assert [record.phase for record in account.provisional()] == [run.phase]

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source):
            await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/q", scope="b1"), within(60))
            if not restarted:
                await service.totals.standing(service.accounts.runs[run.id], within(60))
                insert_many(interstat)
                monkeypatch.setattr(attribution, "tally", held)
                await check(service, run)
        if restarted:
            insert_many(interstat)
            monkeypatch.setattr(attribution, "tally", held)
            async with service_over(tmp_path) as (service, _source):
                await check(service, run)
        interstat.close()

    anyio.run(body)
