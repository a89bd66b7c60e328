"""Live totals from the service in-process: moments that real files and processes rarely hit."""

from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from fluxbudgetd.errors import LedgerError, RequestTimeoutError
from fluxbudgetd.ledger.transcripts import StoredTranscripts
from fluxbudgetd.service import Service
from fluxbudgetd.sources.transcripts import reading as reading_module
from fluxbudgetd.totals import transcript_store as store_module
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages
from harness.interstat import Interstat
from harness.live import append
from harness.service import service_over, within
from harness.transcripts import Transcript


async def read_until_unchanged(service: Service, account: RunAccount) -> None:
    """End a run, so that no watcher notices changes, and read its transcripts until they no longer seem to change.

    A directory that has only just changed is read again.
    """
    await service.lifecycle.end(account, "done", within(60))
    with anyio.fail_after(60):
        while any(service.totals.transcripts.changed(session) for session in account.sessions):
            await service.totals.standing(account, within(60))
            await anyio.sleep(0.01)


def test_run_and_phase_changes_while_a_transcript_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token counts once if the session is moved and its run advances between the reads of a long transcript."""
    monkeypatch.setattr(reading_module, "MAX_BYTES", 3000)

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        async with service_over(tmp_path) as (service, _):
            first, *_ = await service.lifecycle.start(
                messages.RunStart(project_dir="/p", session="s1", phases=tuple("abcdefgh")), within(60)
            )
            second, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/q"), within(60))
            one, two = service.accounts.runs[first.id], service.accounts.runs[second.id]
            append(tmp_path, "s1", 0, 5)
            await service.totals.standing(one, within(60))
            append(tmp_path, "s1", 5, 300)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.totals.standing, one, within(60))
                for phase in "abcde":
                    await anyio.sleep(0.01)
                    await service.checks.advance(one, phase, None, None)
                    await service.attachments.attach("s1", two, within(60))
                    await service.attachments.attach("s1", one, within(60))
            standings = await service.totals.standings([one, two], within(60))
            assert [standing.balance.measured for standing in standings] == [305, 0]
            assert all(standing.stale_why is None for standing in standings)
            Transcript(tmp_path, "s1").path.write_bytes(b"")
            append(tmp_path, "s1", 0, 200, tokens=10)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.totals.standing, one, within(60))
                await anyio.sleep(0.005)
                await service.attachments.detach("s1", None, within(60))
            # What the truncated file had stays measured.
            assert (await service.totals.standing(one, within(60))).balance.measured == 2000 + 105

    anyio.run(body)


def test_transcript_that_was_read_but_not_counted_is_not_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file no longer seems changed, so only the required generation shows that it must be counted."""
    applying, proceed = anyio.Event(), anyio.Event()

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            append(tmp_path, "s1", 0, 50)
            account = service.accounts.runs[run.id]
            assert (await service.totals.standing(account, within(60))).balance.measured == 50
            await read_until_unchanged(service, account)
            real = service.totals.transcripts.apply

            async def apply(session: str, reading: Any) -> Any:
                applying.set()
                await proceed.wait()
                return await real(session, reading)

            monkeypatch.setattr(service.totals.transcripts, "apply", apply)
            append(tmp_path, "s1", 50, 7)
            service.totals.refresher.request_refresh([run.id])
            with anyio.fail_after(60):
                await applying.wait()
            assert service.totals.standing_now(run.id, None, None, messages.Hints()) is None
            proceed.set()
            assert (await service.totals.standing(account, within(60))).balance.measured == 57

    anyio.run(body)


def test_run_that_ended_long_ago_is_loaded_after_the_ledger_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sources are no longer read, but the next request retries the ledger."""
    failing = False
    real = StoredTranscripts.responses

    async def responses(stored: StoredTranscripts, session: str) -> Any:
        if failing:
            raise LedgerError("disk I/O error", "try again")
        return await real(stored, session)

    monkeypatch.setattr(StoredTranscripts, "responses", responses)

    async def body() -> None:
        nonlocal failing
        Interstat(tmp_path / "metrics.db").close()
        async with service_over(tmp_path) as (service, _):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            append(tmp_path, "s1", 0, 50)
            await service.totals.standing(service.accounts.runs[run.id], within(60))
        async with service_over(tmp_path) as (service, _):
            account = service.accounts.put_run(msgspec.structs.replace(run, status="done", ended_at=1))
            failing = True
            with pytest.raises(RequestTimeoutError):
                await service.totals.standing(account, within(60))
            failing = False
            assert (await service.totals.standing(account, within(60))).balance.measured == 50

    anyio.run(body)


@pytest.mark.parametrize("restarted", [False, True])
def test_answers_are_stale_until_the_ledger_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    """New responses are not added to an empty sum: answers are stale, or time out, until the ledger can be read."""
    failing = False
    for name in ("responses", "find"):
        real = getattr(StoredTranscripts, name)

        async def read(*arguments: Any, real: Any = real) -> Any:
            if failing:  # a real disk cannot be made to fail only once
                raise LedgerError("disk I/O error", "check the disk")
            return await real(*arguments)

        monkeypatch.setattr(StoredTranscripts, name, read)

    async def ask(service: Service, run: str) -> tuple[int | None, bool]:
        try:
            standing = await service.totals.standing(service.accounts.runs[run], within(2))
        except RequestTimeoutError:
            return None, True
        return standing.balance.measured, standing.stale_why is not None

    async def body() -> None:
        nonlocal failing
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=9, output_tokens=0)
        async with service_over(tmp_path) as (service, _):
            for session in ("s1", "s2"):
                run, *_ = await service.lifecycle.start(
                    messages.RunStart(project_dir="/p", id=f"r-{session}", session=session, whole=True), within(60)
                )
                append(tmp_path, session, 0, 50)
                assert await ask(service, run.id) == (50, False)
            if not restarted:
                append(tmp_path, "s1", 50, 7)
                failing = True
                assert (await ask(service, "r-s1"))[1]
                failing = False
                assert await ask(service, "r-s1") == (57, False)
        if restarted:
            async with service_over(tmp_path) as (service, _):
                failing = True
                assert await ask(service, "r-s1") == (None, True)
                failing = False
                assert await ask(service, "r-s1") == (50, False)
        interstat.close()

    anyio.run(body)


def test_session_that_continues_in_another_project_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other projects' directories are searched again every few seconds."""
    monkeypatch.setattr(store_module, "SEARCH_SECONDS", 3600)  # a busy machine may need longer than usual

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        other = Transcript(tmp_path, "s1", "-another")
        other.path.parent.mkdir(parents=True)
        async with service_over(tmp_path) as (service, _):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            append(tmp_path, "s1", 0, 5)
            account = service.accounts.runs[run.id]
            assert (await service.totals.standing(account, within(60))).balance.measured == 5
            await read_until_unchanged(service, account)
            other.response("elsewhere", tokens=(30, 0, 0, 0))
            assert (await service.totals.standing(account, within(60))).balance.measured == 5
            monkeypatch.setattr(store_module, "SEARCH_SECONDS", 0)
            assert (await service.totals.standing(account, within(60))).balance.measured == 35

    anyio.run(body)


def test_sessions_no_longer_followed_are_forgotten(tmp_path: Path) -> None:
    """Their faults are forgotten, too."""

    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        async with service_over(tmp_path) as (service, _):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            append(tmp_path, "s1", 0, 5)
            Transcript(tmp_path, "s1").agent("x").path.mkdir(parents=True)
            account = service.accounts.runs[run.id]
            assert "is a directory" in str((await service.totals.standing(account, within(60))).stale_why)
            await service.lifecycle.end(account, "done", within(60))
            ended = msgspec.structs.replace(account.run, ended_at=1)  # long ago
            service.accounts.put_run(ended)
            with anyio.fail_after(30):
                while service.totals.transcripts.files or service.totals.transcripts.status.state != "ok":
                    service.totals.follower.forget_old_transcripts()
                    await anyio.sleep(0.01)  # a read that has already begun may bring it back once

    anyio.run(body)
