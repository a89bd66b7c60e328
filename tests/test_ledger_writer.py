"""The ledger writer writes what is requested, retries while the ledger fails, and flushes at the end."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import anyio

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import LedgerWriter


class Records:
    """Records that wait to be written. A write waits for `hold`, and fails with `fault`."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.written: list[int] = []
        self.attempts: list[float] = []
        self.fault: str | None = None
        self.hold: anyio.Event | None = None
        self.is_writing = anyio.Event()

    async def write(self) -> None:
        batch = list(self.waiting)
        self.attempts.append(anyio.current_time())
        self.is_writing.set()
        if self.hold is not None:
            await self.hold.wait()
        if self.fault is not None:
            raise LedgerError(self.fault, "check the disk")
        self.written += batch
        del self.waiting[: len(batch)]


def run(body: Callable[[], Coroutine[None, None, None]]) -> None:
    async def limited() -> None:
        with anyio.fail_after(30):
            await body()

    anyio.run(limited)


@asynccontextmanager
async def served(writer: LedgerWriter) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(writer.serve)
        yield
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  the writer has no event for this
        await anyio.sleep(0.001)


def test_attempt_returns_when_its_records_are_written() -> None:
    async def body() -> None:
        records, writer = Records(), LedgerWriter()
        backlog = writer.backlog("records", records.write)
        async with served(writer):
            records.waiting = [1, 2]
            assert await backlog.attempt()
            assert (records.written, writer.fault) == ([1, 2], None)

    run(body)


def test_attempt_does_not_count_a_write_that_began_before_it() -> None:
    """A record that was added during a write may not be part of it."""

    async def body() -> None:
        records, writer = Records(), LedgerWriter()
        records.hold = anyio.Event()
        backlog = writer.backlog("records", records.write)
        async with served(writer):
            records.waiting = [1]
            backlog.request()
            await records.is_writing.wait()
            records.waiting.append(2)
            assert not await backlog.attempt(0)
            records.hold.set()
            assert await backlog.attempt()
            assert records.written == [1, 2]

    run(body)


def test_failure_is_the_writers_fault_until_the_write_succeeds() -> None:
    """The write is retried without another request."""

    async def body() -> None:
        records, others, writer = Records(), Records(), LedgerWriter(pauses=(0.005, 60))
        backlog = writer.backlog("records", records.write)
        other = writer.backlog("others", others.write)
        records.fault = "disk full"
        async with served(writer):
            records.waiting, others.waiting = [1], [1]
            assert not await backlog.attempt()
            assert await other.attempt(), "one backlog's failure is not another's"
            assert writer.fault == "disk full"
            records.fault = None
            await backlog.written()
            assert records.written == [1]
            assert writer.fault is None

    run(body)


def test_pauses_double_and_a_request_ends_one() -> None:
    shortest = 0.005

    async def body() -> None:
        records, writer = Records(), LedgerWriter(pauses=(shortest, 3600))
        backlog = writer.backlog("records", records.write)
        records.fault = "disk full"
        async with served(writer):
            backlog.request()
            await until(lambda: len(records.attempts) == 6)
            pauses = [after - before for before, after in zip(records.attempts, records.attempts[1:], strict=False)]
            assert all(pause >= shortest * 2**number for number, pause in enumerate(pauses)), pauses
            for _ in range(20):  # waiting for the pauses would take an hour
                assert not await backlog.attempt()

    run(body)


def test_flush_writes_the_rest_and_gives_up_on_failures() -> None:
    """It writes records whose write was never requested, and those of a cancelled write."""

    async def body() -> None:
        records, others, failing, writer = Records(), Records(), Records(), LedgerWriter()
        backlog = writer.backlog("records", records.write)
        writer.backlog("others", others.write)
        writer.backlog("failing", failing.write)
        records.hold = anyio.Event()
        async with served(writer):
            records.waiting = [1]
            backlog.request()
            await records.is_writing.wait()
        records.hold.set()
        others.waiting = [2]
        failing.fault = "disk full"
        await writer.flush()
        assert (records.written, others.written, writer.fault) == ([1], [2], "disk full")

    run(body)


def test_failed_read_is_a_fault_until_a_read_succeeds() -> None:
    writer = LedgerWriter()
    writer.note_unreadable(LedgerError("malformed", "check the disk"))
    assert writer.fault == "malformed"
    writer.note_readable()
    assert writer.fault is None
