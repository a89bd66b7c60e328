"""A request or a source that hangs or fails affects no other request.

The tests cannot make a file system hang, so they hold up the source's read function. Everything around it is real.
"""

import os
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
import pytest

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import FluxError, RequestTimeoutError
from fluxbudgetd.ledger import open_ledger
from fluxbudgetd.model import Reading, Run
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.server.limits import Limits
from fluxbudgetd.server.requests import Handler
from fluxbudgetd.server.server import Server
from fluxbudgetd.service import Service
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.totals import transcript_store
from fluxbudgetd.totals.account import NEVER, Stamp
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.descriptors import open_files
from harness.interstat import Interstat
from harness.service import service_over, within


def test_hanging_source_makes_answers_stale(tmp_path: Path) -> None:
    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            account = service.accounts.runs[run.id]
            interstat.insert("s1", input_tokens=10, output_tokens=0)
            standing = await service.totals.standing(account, within(60))
            assert (standing.balance.spent, standing.stale_why) == (10, None)
            source.hang()
            interstat.insert("s1", input_tokens=5, output_tokens=0)
            for _ in range(3):
                standing = await service.totals.standing(account, within(0.02))
                assert standing.balance.spent == 10
                assert standing.stale_why is not None
                assert "slow" in standing.stale_why
            with anyio.fail_after(60):
                while service.totals.sources[0].status.state != "slow":  # noqa: ASYNC110  it depends on the clock
                    await anyio.sleep(0.05)
            # Runs can still be changed.
            changed, *_ = await service.lifecycle.change(account, messages.RunSet(token_budget=50), within(0.2))
            assert changed.token_budget == 50
            source.resume()
            standing = await service.totals.standing(account, within(60))
            assert (standing.balance.spent, standing.stale_why) == (15, None)
        interstat.close()

    anyio.run(body)


def test_session_that_joins_during_a_read_makes_its_run_stale(tmp_path: Path) -> None:
    """A batch that began before the session was attached did not read its rows."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            account = service.accounts.runs[run.id]
            await service.totals.standing(account, within(60))
            interstat.insert("s1", input_tokens=5, output_tokens=0)
            interstat.insert("s2", input_tokens=77, output_tokens=0)
            source.hang()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.totals.standing, account, within(60))
                await anyio.to_thread.run_sync(source.hanging.wait, 60)
                await service.attachments.attach("s2", account, within(0))
                source.resume()
            standing = await service.totals.standing(account, within(60))
            assert (standing.balance.spent, standing.stale_why) == (82, None)
        interstat.close()

    anyio.run(body)


def test_partial_read_does_not_count_as_fresh(tmp_path: Path) -> None:
    """Answers are stale while an abandoned read still occupies the reader."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            account = service.accounts.runs[run.id]
            await service.totals.standing(account, within(60))
            abandoned, release = threading.Event(), threading.Event()

            def hanging_scopes() -> Iterator[str]:
                abandoned.set()
                release.wait(60)
                yield from ()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, source.read, {}, hanging_scopes())
                await anyio.to_thread.run_sync(abandoned.wait, 60)
                interstat.insert("s1", input_tokens=5, output_tokens=0)
                standing = await service.totals.standing(account, within(1))
                assert (standing.balance.spent, standing.stale_why is None) == (0, False)
                release.set()
            standing = await service.totals.standing(account, within(60))
            assert (standing.balance.spent, standing.stale_why) == (5, None)
        interstat.close()

    anyio.run(body)


def test_slow_budget_file_counts_if_the_deadline_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the deadline is too short, the last good rules count, at first the built-in ones."""
    file = tmp_path / "project" / ".claude" / "flux-drive-budget.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("agent_defaults:\n  review: 12345\n")
    review_budget = Settings.review_budget

    async def slowly(settings: Settings, project_dir: str | None, *, calibrated: bool = True) -> ReviewBudget:
        await anyio.sleep(0.1)
        return await review_budget(settings, project_dir, calibrated=calibrated)

    monkeypatch.setattr(Settings, "review_budget", slowly)

    async def expected(service: Service, run: Run, seconds: float) -> int:
        return (await service.reviews.expected("fd-quality", None, "s", run, within(seconds))).tokens

    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir=str(tmp_path / "project"))
            run, *_ = await service.lifecycle.start(asked, within(60))
            assert await expected(service, run, 0.1) == 40_000
            assert await expected(service, run, 60) == 12_345
            file.write_text("agent_defaults:\n  review: 54321\n")
            assert await expected(service, run, 0.1) == 12_345
            assert await expected(service, run, 60) == 54_321

    anyio.run(body)


def test_ended_run_is_refreshed_without_a_request(tmp_path: Path) -> None:
    """Late rows of a finished run reach the ledger."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            await service.lifecycle.end(service.accounts.runs[run.id], "done", within(60))
            interstat.insert("s1", input_tokens=5, output_tokens=0)
            await service.totals.follower.scan()  # the watcher and the hourly scan call this
            assert [record.input for record in await service.ledger.usage.of_session("s1", "interstat")] == [5]
        interstat.close()

    anyio.run(body)


def test_session_without_a_run_is_not_read_by_every_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored about the session. It is found as soon as a row with a bead attaches it to a run."""
    # (A busy machine may need longer than the usual time, and then the answer would take waiting.)
    monkeypatch.setattr(transcript_store, "SEARCH_SECONDS", 3600)

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", scope="b1"), within(60))
            await service.totals.standing(service.accounts.runs[run.id], within(60))
            interstat.insert("unknown", input_tokens=5, output_tokens=0)
            hints = messages.Hints(sessions=("unknown",), cwd="/p")
            found = await service.totals.find(None, None, None, hints, within(60))
            assert found.run.id == run.id
            await service.totals.standing(found, within(60))
            source.hang()
            standing = service.totals.standing_now(None, None, None, hints)
            assert standing is not None
            assert standing.balance.spent == 0
            source.resume()
            assert "unknown" not in service.accounts.sessions
            assert await service.ledger.usage.of_session("unknown", "interstat") == ()
            interstat.insert("unknown", bead_id="b1", input_tokens=1, output_tokens=0)
            assert service.totals.standing_now(None, None, None, hints) is None
            found = await service.totals.find(None, None, "unknown", messages.Hints(), within(60))
            assert (await service.totals.standing(found, within(60))).balance.spent == 6
        interstat.close()

    anyio.run(body)


def test_request_has_one_deadline_for_everything(tmp_path: Path) -> None:
    """With a hanging source, finding an unknown session's run and reading share it. Changes are not delayed."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, source):
            asked = messages.RunStart(project_dir="/p", scope="b1", session="s0")
            run, *_ = await service.lifecycle.start(asked, within(60))
            context = Context(service=service, state_dir=str(tmp_path), started_at=0, connections=lambda: 0)
            source.hang()
            interstat.insert("s1", input_tokens=5, output_tokens=0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.attachments.attach, "s1", service.accounts.runs[run.id], within(60))
                await anyio.sleep(0.02)
                with anyio.fail_after(30):
                    hints = messages.Hints(sessions=("unknown",), cwd="/p")
                    answer = handle(context, messages.Remaining(hints=hints, wait_ms=400), os.getpid())
                    assert isinstance(answer, Awaitable)
                    assert getattr(await answer, "spend").stale  # noqa: B009  one of many kinds of answers
                    await service.lifecycle.start(messages.RunStart(id="another", project_dir="/p"), within(60))
                source.resume()
        interstat.close()

    anyio.run(body)


def test_connection_that_never_reads_is_closed(tmp_path: Path) -> None:
    """The daemon closes it after a while, and limits the total size of the large answers that wait to be read."""
    limits = Limits(send_seconds=0.5, shared_bytes=1_000_000)
    large = messages.PingAnswer(version="v" * 900_000, protocol=1, pid=1, started_at="now")

    async def body() -> None:
        path = tmp_path / "s"
        request = encode_frame(messages.encode(messages.Ping()))
        async with serving(path, lambda _request, _pid: large, limits):
            deaf = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            for peer in deaf:
                peer.connect(str(path))
                peer.sendall(request)
                await anyio.sleep(0.05)
            async with await anyio.connect_unix(path) as other:
                refused = await ask(other, messages.Ping())
                assert isinstance(refused, messages.ErrorAnswer)
                assert refused.error.code == "busy"
            await anyio.sleep(1)  # twice the limit
            for peer in deaf[:1]:
                peer.setblocking(False)
                taken = 0
                with pytest.raises((ConnectionResetError, EOFError)):  # noqa: PT012  the end shows as EOF or an error
                    while True:
                        data = peer.recv(1 << 20)
                        if not data:
                            raise EOFError
                        taken += len(data)
                assert taken < 900_000
            for peer in deaf:
                peer.close()

    anyio.run(body)


def test_run_started_before_usage_is_saved_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage that is counted but not yet in the ledger moves to the new run and stays there."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        async with service_over(tmp_path) as (service, _source):
            first, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p", session="s1"), within(60))
            await service.totals.standing(service.accounts.runs[first.id], within(60))
            let, save = anyio.Event(), service.ledger.usage.save

            async def slow_save(*arguments: Any) -> None:
                await let.wait()
                await save(*arguments)

            monkeypatch.setattr(service.ledger.usage, "save", slow_save)
            interstat.insert("s1", bead_id="x", input_tokens=30, output_tokens=2)
            interstat.insert("s1", input_tokens=10, output_tokens=0)
            assert (await service.totals.standing(service.accounts.runs[first.id], within(60))).balance.spent == 42
            second, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/q", scope="x"), within(60))
            accounts = [service.accounts.runs[run.id] for run in (first, second)]
            standings = await service.totals.standings(accounts, within(60))
            assert [(one.balance.spent, one.stale_why) for one in standings] == [(10, None), (32, None)]
            third, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/r", session="s1"), within(60))
            for _ in range(2):
                accounts = [service.accounts.runs[run.id] for run in (first, second, third)]
                standings = await service.totals.standings(accounts, within(60))
                assert [(one.balance.spent, one.stale_why) for one in standings] == [(10, None), (32, None), (0, None)]
                let.set()
                await anyio.sleep(0.05)
        interstat.close()

    anyio.run(body)


def test_run_that_was_never_read_is_an_error(tmp_path: Path) -> None:
    """Between a restart and the first read, requests time out instead of reporting 0."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=5, output_tokens=0)
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir="/p", session="s1", whole=True)
            run, *_ = await service.lifecycle.start(asked, within(60))
            await service.totals.standing(service.accounts.runs[run.id], within(60))
        async with service_over(tmp_path) as (service, source):
            account = service.accounts.runs[run.id]
            with pytest.raises(RequestTimeoutError):
                await service.totals.standing(account, within(0))
            source.hang()
            interstat.insert("s1", input_tokens=5, output_tokens=0)
            standing = await service.totals.standing(account, within(0.5))
            assert (standing.balance.spent, standing.stale_why is None) == (5, False)
            source.resume()
            assert (await service.totals.standing(account, within(60))).balance.spent == 10
        interstat.close()

    anyio.run(body)


@pytest.mark.parametrize("request_", [messages.Status(wait_ms=0), messages.RunList(wait_ms=0)])
def test_list_with_numbers_that_were_never_read_is_an_error(tmp_path: Path, request_: messages.AnyRequest) -> None:
    """After a restart, `status` and `run list` do not show 0 for a run before its numbers are loaded."""

    async def body() -> None:
        interstat = Interstat(tmp_path / "metrics.db")
        interstat.insert("s1", input_tokens=5, output_tokens=0)
        async with service_over(tmp_path) as (service, _source):
            asked = messages.RunStart(project_dir="/p", session="s1", whole=True)
            run, *_ = await service.lifecycle.start(asked, within(60))
            await service.totals.standing(service.accounts.runs[run.id], within(60))
        async with service_over(tmp_path) as (service, source):
            source.hang()
            context = Context(service=service, state_dir=str(tmp_path), started_at=0, connections=lambda: 0)
            answer = handle(context, request_, os.getpid())
            assert isinstance(answer, Awaitable)
            with pytest.raises(RequestTimeoutError):
                await answer
            answer = handle(context, msgspec.structs.replace(request_, wait_ms=400), os.getpid())
            assert isinstance(answer, Awaitable)
            (line,) = getattr(await answer, "runs")  # noqa: B009  one of many kinds of answers
            assert (line.spend.spent, line.spend.stale) == (5, True)
            source.resume()
        interstat.close()

    anyio.run(body)


def test_defect_in_a_read_reaches_only_the_requests_that_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def body() -> None:
        Interstat(tmp_path / "metrics.db").close()
        async with service_over(tmp_path) as (service, source):
            run, *_ = await service.lifecycle.start(messages.RunStart(project_dir="/p"), within(60))
            account = service.accounts.runs[run.id]

            def fail(*_arguments: Any) -> Reading:
                raise ValueError("a defect")

            with monkeypatch.context() as patch:
                patch.setattr(source, "read", fail)
                account.shown = Stamp(NEVER, 0)
                with pytest.raises(ValueError, match="a defect"):
                    await service.totals.standing(account, within(60))
            standing = await service.totals.standing(account, within(60))
            assert standing.stale_why is None

    anyio.run(body)
    assert "refresh failed" in capsys.readouterr().out  # structlog as it is before the daemon configures it


@asynccontextmanager
async def serving(path: Path, handler: Handler, limits: Limits) -> AsyncIterator[None]:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    listening.setblocking(False)
    with listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Server(handler, limits).serve, listening)
            yield
            tasks.cancel_scope.cancel()


async def ask(
    stream: anyio.abc.SocketStream, request: messages.AnyRequest
) -> messages.AnyAnswer | messages.ErrorAnswer:
    await stream.send(encode_frame(messages.encode(request)))
    decoder = FrameDecoder()
    while (body := decoder.next()) is None:
        decoder.feed(await stream.receive())
    return messages.decode_answer(body)


PONG = messages.PingAnswer(version="v", protocol=1, pid=1, started_at="now")


def test_request_that_fails_or_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A defect gives an `internal` error, a hang a `timeout`; other requests are answered."""

    async def handler(request: messages.AnyRequest, _pid: int) -> messages.AnyAnswer:
        if isinstance(request, messages.Doctor):
            await anyio.sleep_forever()
        if isinstance(request, messages.Status):
            raise RuntimeError("a defect, with a secret in it")  # noqa: TRY004  any kind will do
        if isinstance(request, messages.RunList):
            raise FluxError("foreseen", "do something")
        return PONG

    async def body() -> None:
        path = tmp_path / "s"
        async with (
            serving(path, handler, Limits(request_seconds=0.5)),
            await anyio.connect_unix(path) as hanging,
            await anyio.connect_unix(path) as other,
        ):
            await hanging.send(encode_frame(messages.encode(messages.Doctor())))
            failed = await ask(other, messages.Status())
            assert isinstance(failed, messages.ErrorAnswer)
            assert failed.error.code == "internal"
            assert "secret" not in failed.error.message
            foreseen = await ask(other, messages.RunList())
            assert isinstance(foreseen, messages.ErrorAnswer)
            assert foreseen.error.hint == "do something"
            assert await ask(other, messages.Ping()) == PONG
            late = await ask(hanging, messages.Ping())
            assert isinstance(late, messages.ErrorAnswer)
            assert late.error.code == "timeout"

    anyio.run(body)
    assert "request failed" in capsys.readouterr().out  # structlog as it is before the daemon configures it


def test_change_is_completed_even_if_its_client_disconnects(tmp_path: Path) -> None:
    """It is completed if its transaction has begun."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            for number in range(50):
                with anyio.move_on_after(number * 0.0001):
                    await service.lifecycle.start(messages.RunStart(id=f"r{number}", project_dir="/p"), within(60))
            await service.lifecycle.start(messages.RunStart(id="last", project_dir="/p"), within(60))
        ledger, _ = await open_ledger(str(tmp_path))
        kept = {run.id for run, _ in await ledger.runs.all()}
        events = {event.run for event in await ledger.events.after(0, 1000) if event.kind == "run.started"}
        await ledger.close()
        assert "last" in kept
        assert kept == events

    anyio.run(body)


def test_reopen_closes_the_database(tmp_path: Path) -> None:
    interstat = Interstat(tmp_path / "metrics.db")
    source = InterstatSource(str(tmp_path / "metrics.db"))
    assert source.read({"s": None}, ()).status.is_readable
    assert sum("metrics.db" in target for target in open_files()) > 2
    interstat.close()
    source.reopen()
    assert not any("metrics.db" in target for target in open_files())


def test_closed_file_counts_as_changed_only_after_a_commit(tmp_path: Path) -> None:
    """Requests outside any run do not read an unchanged file again."""
    interstat = Interstat(tmp_path / "metrics.db")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    source = InterstatSource(str(tmp_path / "metrics.db"))
    files = [tmp_path / "metrics.db", tmp_path / "metrics.db-wal"]

    def read_and_close() -> int:
        for path in files:
            os.utime(path, (1, 1))  # the times of a file that was written just now are not relied on
        epoch = source.epoch()
        source.read({"s1": None}, ())
        source.close()
        return epoch

    epoch = read_and_close()
    assert source.epoch() == source.epoch() == epoch
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    assert source.epoch() > epoch
    assert source.epoch() > epoch + 1, "unknown until it is read again"
    epoch = read_and_close()
    assert source.epoch() == epoch
    source.read({"s1": None}, ())
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    for path in files:
        os.utime(path, (1, 1))
    source.close()
    assert source.epoch() > epoch, "a commit between the read and the closing"
    source.read({"s1": None}, ())
    os.utime(files[1])
    source.close()
    assert source.epoch() < source.epoch(), "a file that was written just now"
    source.reopen()
    interstat.close()


def test_every_query_uses_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """According to SQLite's query plans, no read scans the whole table."""
    interstat = Interstat(tmp_path / "metrics.db")
    interstat.insert("s1", bead_id="b1")
    seen: list[str] = []
    connect = sqlite3.connect

    def traced_connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced_connect)
    source = InterstatSource(str(tmp_path / "metrics.db"))
    source.read({"s1": None, "s2": None}, ["b1", "b2"])
    source.recent()
    queries = [sql for sql in seen if sql.startswith("SELECT") and "agent_runs" in sql]
    assert len(queries) == 5
    for sql in queries:
        with closing(sqlite3.connect(tmp_path / "metrics.db")) as connection:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert not any("SCAN agent_runs" in step for step in plan), (sql, plan)
        assert any("SEARCH agent_runs" in step for step in plan), (sql, plan)
    source.reopen()
    interstat.close()
