"""Looks that go through interstat's whole table: one at a time, in a task of their own.

Whoever asks waits as long as it can. A look that takes longer goes on; what it finds is there for whoever asks next.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.model import SourceStatus
from fluxbudgetd.sources.interstat import InterstatSource

log = structlog.get_logger()

T = TypeVar("T")

_MOST_FOUND = 16


class Found(NamedTuple, Generic[T]):
    """What a look found last; None when there is nothing.

    `why` says why that is not as of the question (None: it is), `in_time` whether a look came to its end.
    """

    value: T | None
    why: str | None
    in_time: bool


class History:
    """Looks by key; each has a connection of its own, which is let go of afterwards.

    So that totals stay fresh meanwhile, and writers can put their WAL away when they are done.
    """

    def __init__(self, path: str) -> None:
        self._source = InterstatSource(path)
        self._asked: dict[str, tuple[int, Callable[[InterstatSource], object]]] = {}
        self._found: dict[str, tuple[int, object]] = {}
        self._tried: dict[str, int] = {}
        self._defects: dict[str, Exception] = {}
        self._wanted = anyio.Event()
        self._done = anyio.Event()
        self._began: float | None = None

    def stands_still(self, seconds: float) -> bool:
        """Tell whether a look has been under way for so long."""
        return self._began is not None and anyio.current_time() - self._began > seconds

    @property
    def status(self) -> SourceStatus:
        """Return the source's state as of the last look."""
        return self._source.status

    async def ask(self, key: str, epoch: int, look: Callable[[InterstatSource], T | None], deadline: float) -> Found[T]:
        """Return what `look` (None: it cannot be read) finds at an epoch of the source or later, or found last."""
        if self._tried.get(key, -1) < epoch or key not in self._found:
            self._asked[key] = epoch, look
            self._wanted.set()
            with anyio.CancelScope(deadline=deadline):
                while True:
                    await self._done.wait()
                    if self._tried.get(key, -1) >= epoch:
                        break
        if key in self._defects and self._tried.get(key, -1) >= epoch:
            raise self._defects[key]
        at, value = cast("tuple[int, T | None]", self._found.get(key, (-1, None)))  # a key stands for one kind of look
        if at >= epoch:
            return Found(value, None, in_time=True)
        in_time = self._tried.get(key, -1) >= epoch
        status = self._source.status
        slow = "slow: the present numbers were not there in time"
        why = f"{status.name}: {f'{status.state}: {status.detail}' if in_time else slow}"
        return Found(value, why, in_time)

    async def serve(self) -> None:
        """Look as asked, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            while self._asked:
                key = next(iter(self._asked))
                epoch, look = self._asked.pop(key)
                self._make_room(key)
                self._defects.pop(key, None)
                self._began = anyio.current_time()
                try:
                    value = await anyio.to_thread.run_sync(self._look, look, abandon_on_cancel=True)
                    if value is not None:
                        self._found[key] = epoch, value
                except Exception as exc:
                    # Handed on to every request that waits; the next look starts afresh.
                    log.exception("look failed")
                    self._defects[key] = exc
                self._began = None
                self._tried[key] = epoch
                self._done.set()
                self._done = anyio.Event()

    def _make_room(self, key: str) -> None:
        while len(self._tried) >= _MOST_FOUND and key not in self._tried:
            oldest = next(iter(self._tried))
            tables: tuple[dict[str, Any], ...] = (self._tried, self._found, self._defects)
            for known in tables:
                known.pop(oldest, None)

    def _look(self, look: Callable[[InterstatSource], object]) -> object:
        try:
            return look(self._source)
        finally:
            self._source.reopen()
