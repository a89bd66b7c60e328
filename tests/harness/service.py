"""The real service inside the test's own process, without a socket, for what cannot be observed from outside."""

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger import open_ledger
from fluxbudgetd.model import Reading
from fluxbudgetd.service import Service
from fluxbudgetd.sources.beads import BeadsSource
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from harness.configuration import claude_directory


class HangingSource(InterstatSource):
    """The real source. From `hang` to `resume`, its reads hang, as on a file system that does not answer.

    `hanging` is set while a read hangs.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._is_over = False
        self.hanging = threading.Event()
        self._answering = threading.Event()
        self._answering.set()

    def hang(self) -> None:
        self._answering.clear()

    def resume(self) -> None:
        self._answering.set()

    def read(self, wanted: Mapping[str, int | None], scopes: Iterable[str]) -> Reading:
        if not self._answering.is_set():
            self.hanging.set()
            self._answering.wait(timeout=60)
            self.hanging.clear()
        try:
            return super().read(wanted, scopes)
        finally:
            if self._is_over:
                self.close()

    def finish(self) -> None:
        """Close the database; a read that was abandoned, and is still to come, closes it again."""
        self._is_over = True
        self.reopen()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the service does not report."""
    with anyio.fail_after(60):
        while not condition():  # noqa: ASYNC110  the service does not report it
            await anyio.sleep(0.005)


def within(seconds: float) -> float:
    """Return a deadline on the event loop's clock."""
    return anyio.current_time() + seconds


@asynccontextmanager
async def service_over(
    directory: Path, clock: Callable[[], int] = now_micros, *, follows: bool = True, beads: BeadsSource | None = None
) -> AsyncIterator[tuple[Service, HangingSource]]:
    """Serve from a directory that holds interstat's metrics.db, Claude's projects/ and the ledger.

    `clock` returns the time in microseconds since the epoch. If `follows` is not set, the sources are read only for
    answers.
    """
    newest = NewestEvents()
    ledger, _ = await open_ledger(str(directory), newest.add)
    source = HangingSource(str(directory / "metrics.db"))
    settings = Settings(str(directory / "config.toml"), required=False, claude_dirs=claude_directory(directory))
    service = Service(source, TranscriptSource([str(directory)]), ledger, newest, settings, clock=clock, beads=beads)
    if not follows:
        service.totals.follower.serve = anyio.sleep_forever  # type: ignore[method-assign]  # on this instance only
    await service.load()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.serve)
            try:
                yield service, source
            finally:
                source.resume()
                tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ledger.close()
        source.finish()
