"""Record refusals as events. Equal refusals in a row are one event with a count.

A script, or a model, may try again any number of times. That must neither fill the ledger nor be reported again. So
an equal refusal only increases the `count` of the event that has reported it: in memory at once, in the ledger soon
after. Refusals are equal if they are of the same run and kind, and their data differ only in numbers, or in the digits
of `refusal`. A run's row of refusals ends with any other event of the run.
"""

import re
from collections.abc import Callable
from contextlib import suppress

import anyio
import structlog

from fluxbudgetd.decisions.callers import Callers
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Event, EventData, EventKind
from fluxbudgetd.wire.messages import By

log = structlog.get_logger()

#: Kinds of events: equal ones in a row become one event.
_COUNTED: frozenset[EventKind] = frozenset(("phase.blocked", "launch.denied", "turn.stopped"))
# Counts are written at most this often.
_PAUSE_SECONDS = 1.0
# Bounds memory: of more different refusals in a row, the one not repeated for the longest time is forgotten.
_MOST_DIFFERENT = 64
# Bounds memory while the ledger keeps failing.
_MOST_UNSAVED = 10_000

_DIGITS = re.compile("[0-9]+")

_Key = tuple[EventKind, frozenset[tuple[str, str | None]]]


class _Refusal:
    """A refusal. `event` is None until it is in the ledger; then it shares `data`."""

    __slots__ = ("at", "by", "data", "event", "kind", "run")

    def __init__(self, kind: EventKind, run: str, data: EventData, at: int) -> None:
        self.kind = kind
        self.run = run
        self.data = data
        self.at = at
        self.by: By | None = None
        self.event: Event | None = None


class _Row:
    """A run's refusals since its last other event, by key. `last` is the number of the last one in the ledger."""

    __slots__ = ("last", "refusals")

    def __init__(self) -> None:
        self.last = 0
        self.refusals: dict[_Key, _Refusal] = {}


class Refusals:
    """Records refusals, and overrides, which are not counted.

    `last_of_run` returns the number of a run's last event since the daemon started, 0 if there is none.
    """

    def __init__(
        self,
        ledger: Ledger,
        writer: LedgerWriter,
        callers: Callers,
        clock: Callable[[], int],
        last_of_run: Callable[[str], int],
    ) -> None:
        self._stored = ledger.events
        self._callers = callers
        self._clock = clock
        self._last_of_run = last_of_run
        self._rows: dict[str, _Row] = {}
        self._new: list[_Refusal] = []
        self._repeated: dict[_Refusal, None] = {}
        self._repetition = anyio.Event()
        self._backlog = writer.backlog("refusals and overrides", self._write)

    async def record(self, kind: EventKind, run: str, data: EventData, pid: int | None, deadline: float) -> None:
        """Record an event of a run; wait for the ledger until the deadline.

        `pid` is the process that was refused, None if it is not known. A failed write is retried.
        """
        refusal = _Refusal(kind, run, data, self._clock())
        if kind in _COUNTED:
            data["count"] = 1
            if self._is_repetition(refusal, await self._row(run, deadline)):
                return
        if len(self._new) >= _MOST_UNSAVED:
            log.error("event dropped: too many are waiting for the ledger", kind=kind, run=run)
            return
        if pid is not None:
            refusal.by = (await self._callers.look_up(pid)).by
        self._new.append(refusal)
        await self._backlog.attempt(deadline - anyio.current_time())

    async def serve(self) -> None:
        """Have counts written until cancelled."""
        while True:
            await self._repetition.wait()
            self._repetition = anyio.Event()
            self._backlog.request()
            await anyio.sleep(_PAUSE_SECONDS)

    def _is_repetition(self, refusal: _Refusal, row: _Row) -> bool:
        """Count the refusal if an equal one is in the row; otherwise add it to the row."""
        self._end_row(refusal.run, row)
        key = _key(refusal)
        known = row.refusals.pop(key, None)
        row.refusals[key] = known or refusal
        if known is None:
            if len(row.refusals) > _MOST_DIFFERENT:
                del row.refusals[next(iter(row.refusals))]
            return False
        known.data["count"] = _count(known) + 1
        self._repeated[known] = None
        self._repetition.set()
        return True

    async def _row(self, run: str, deadline: float) -> _Row:
        """Return the run's row. After a restart, the last event in the ledger may be a refusal that is repeated."""
        row = self._rows.get(run)
        if row is None:
            last = None
            with anyio.CancelScope(deadline=deadline), suppress(LedgerError):
                last = await self._stored.last_of(run)
            row = self._rows.setdefault(run, _Row())
            if last is not None and last.kind in _COUNTED and not row.refusals:
                refusal = _Refusal(last.kind, run, last.data, last.at)
                refusal.event = last
                row.refusals[_key(refusal)] = refusal
                row.last = last.seq
        return row

    def _end_row(self, run: str, row: _Row) -> None:
        """Empty the row if another event of the run has followed; what is not written yet will follow that one."""
        if self._last_of_run(run) > row.last:
            row.refusals = {key: each for key, each in row.refusals.items() if each.event is None}

    async def _write(self) -> None:
        new = self._new[:]
        if new:
            events = await self._stored.add([(each.at, each.run, (each.kind, each.data), each.by) for each in new])
            for refusal, event in zip(new, events, strict=True):
                refusal.event = event
                if refusal.kind in _COUNTED:
                    self._rows[refusal.run].last = event.seq
            del self._new[: len(new)]
        repeated = [each for each in self._repeated if each.event is not None]
        counts = [(each.event.seq, each.data, _count(each)) for each in repeated if each.event is not None]
        if counts:
            await self._stored.update([(seq, data) for seq, data, _ in counts])
            for refusal, (_, _, count) in zip(repeated, counts, strict=True):
                if _count(refusal) == count:
                    del self._repeated[refusal]


def _key(refusal: _Refusal) -> _Key:
    texts = {name: value for name, value in refusal.data.items() if not isinstance(value, (int, float))}
    line = texts.get("refusal")
    if line is not None:
        texts["refusal"] = _DIGITS.sub("", line)
    return refusal.kind, frozenset(texts.items())


def _count(refusal: _Refusal) -> int:
    count = refusal.data.get("count")
    return count if isinstance(count, int) else 1
