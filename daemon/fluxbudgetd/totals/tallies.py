"""The sums of what was measured, and keeping it in the ledger.

The rules of this room: a session's sums are put by one task at a time, the one that holds the lock of the sums. Whoever
applies a reading of its transcripts, or asks for their copies, holds it, too: so sums and copies always agree. A sum
that took a while is made again when runs or attachments have changed meanwhile. Nothing waits for the ledger while it
is written, but for a moment; until it is, what has been measured stands here, newer than what the ledger has.
"""

from collections.abc import Callable, Mapping

import anyio

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.ledger import Ledger, LedgerWriter, UsageChanges
from fluxbudgetd.model import Attachment, Cell, Copy, Counts, Instance, Reading, Timeline, TranscriptReading, Usage
from fluxbudgetd.policy import attribution, burn
from fluxbudgetd.sources.transcripts import MAIN
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.transcripts import Delta, Transcripts, usage

#: The name of the transcripts as a source.
LIVE = "transcripts"
# An answer waits this long for its numbers to be kept: nearly always they are, and then no kill can make a total fall.
_KEEP_SECONDS = 0.05


class Tallies:
    """Puts sums into the accounts. `source` is the name of the source whose rows are summed beside the transcripts."""

    def __init__(
        self,
        source: str,
        live: Transcripts,
        ledger: Ledger,
        writer: LedgerWriter,
        accounts: Accounts,
        clock: Callable[[], int],
    ) -> None:
        self._source = source
        self._live = live
        self._ledger = ledger
        self._accounts = accounts
        self._clock = clock
        self._writer = writer
        # Of the sessions that have reservations, the sub-agents that have a row.
        self._instances: dict[str, tuple[Instance, ...]] = {}
        # A session's sums are put by one task at a time: an older tally must not land on a newer one.
        self._summing = anyio.Lock()
        # What has been measured and is not in the ledger yet: newer than what the ledger has.
        self._unkept: dict[str, tuple[Usage, ...]] = {}
        self._backlog = writer.backlog("usage", self._write)

    def watch_rows(self, session: str) -> None:
        """Note from now on which sub-agents of a session have a row."""
        self._instances.setdefault(session, ())

    def unwatch_rows(self, session: str) -> None:
        """Note it no more."""
        self._instances.pop(session, None)

    def instances(self, session: str) -> tuple[Instance, ...]:
        """Return the sub-agents of a watched session that have a row: they have ended, be they measured yet or not."""
        return self._instances.get(session, ())

    async def rows(self, name: str) -> tuple[Usage, ...]:
        """Return the rows that were last measured of a session; raises `LedgerError`."""
        records = self._unkept.get(name)
        if records is None:
            records = await self._ledger.usage.of_session(name, self._source)
        return records

    async def responses(self, name: str) -> tuple[Usage, ...]:
        """Return the responses that count of a session's transcripts; raises `LedgerError`."""
        async with self._summing:
            return await self._live.usage(name)

    async def put_transcripts(self, name: str, reading: TranscriptReading, *, anew: bool) -> None:
        """Change a session's sums by what was read of its transcripts; `anew`: sum both its sources again after that.

        Raises `LedgerError` when what was known before cannot be read; then the sums are as they were.
        """
        async with self._summing:
            await self._shift(name, await self._live.apply(name, reading))
            if anew:
                await self._sum_all(name)

    async def put_rows(self, reading: Reading, epoch: int) -> None:
        """Sum what has changed, and note what of it has to be kept."""
        async with self._summing:
            for name, one in reading.sessions.items():
                state = self._accounts.session(name)
                if one.records is not None:
                    # A session that has nothing to do with any run, before and after, is none of the ledger's business.
                    ours = self._accounts.is_followed(name)
                    if ours and not state.loaded:
                        # What its transcripts have given is not known yet: rows alone would be taken for all there is.
                        self._unkept[name] = one.records
                        await self._sum_all(name)
                    else:
                        await self._sum(name, one.records)
                    state.digest, state.anomalies = one.digest, one.anomalies
                    if ours or self._accounts.is_followed(name):
                        self._unkept[name] = one.records
                state.epoch = epoch

    async def retally(self, name: str) -> None:
        """Sum a session's last measured usage again, after its attachments or the runs have changed; never fails."""
        async with self._summing:
            await self._sum_all(name)

    async def sessions_naming(self, scope: str) -> set[str]:
        """Return the sessions whose last measured usage names a scope; never fails."""
        try:
            found = set(await self._ledger.usage.sessions_naming(scope))
        except LedgerError as exc:
            self._writer.note_unreadable(exc)
            found = set()
        return found | {name for name, records in self._unkept.items() if any(one.bead == scope for one in records)}

    async def have_kept(self) -> None:
        """Have what is not in the ledger yet written, and wait briefly for the attempt."""
        if self._unkept or self._live.has_unkept:
            await self._backlog.attempt(_KEEP_SECONDS)

    async def _write(self) -> None:
        batch = dict(self._unkept)
        if batch:
            await self._write_rows(batch)
            for name, records in batch.items():
                if self._unkept.get(name) is records:
                    del self._unkept[name]
        if self._live.has_unkept:
            await self._live.keep()
        self._writer.note_readable()

    async def _write_rows(self, batch: Mapping[str, tuple[Usage, ...]]) -> None:
        changes = []
        for name, records in batch.items():
            before = await self._ledger.usage.of_session(name, self._source)
            size = len(records) + len(before)
            changes.append((name, await off_loop(size, UsageChanges.between, before, records)))
        await self._ledger.usage.save(self._source, changes)

    async def _shift(self, name: str, delta: Delta) -> None:
        """Change a session's sums by what has come of its transcripts, or make them anew."""
        if not delta.gone and not delta.new:
            return
        accounts, state = self._accounts, self._accounts.session(name)
        version = accounts.version
        if state.live and state.loaded and state.scope_version == accounts.scope_version:
            attachments = tuple(state.current)
            less = await off_loop(len(delta.gone), _tally_live, delta.gone, attachments, accounts.timelines)
            more = await off_loop(len(delta.new), _tally_live, delta.new, attachments, accounts.timelines)
            total = state.figures[LIVE] + sum(more.values(), Counts()) - sum(less.values(), Counts())
            if accounts.version == version and total.total > 0 and not _takes_the_earliest(state.earliest, delta):
                accounts.shift_sums(name, less, more, attribution.earliest(map(usage, delta.new)))
                now = self._clock()
                was, is_now = (burn.by_minute(map(usage, copies), now) for copies in (delta.gone, delta.new))
                state.minutes = burn.shifted(state.minutes, was, is_now, now)
                state.figures[LIVE] = total
                return
        await self._sum_all(name)

    async def _sum_all(self, name: str) -> None:
        """Sum a session anew from both sources; never fails, but without the ledger it counts as not loaded."""
        state = self._accounts.session(name)
        try:
            live = await self._live.usage(name)
            records = await self.rows(name)
        except LedgerError as exc:
            self._writer.note_unreadable(exc)
            state.unsummed = True
            return
        self._writer.note_readable()
        state.unsummed, state.whole = False, True
        state.live = any(one.input or one.output or one.cache_read or one.cache_creation for one in live)
        await self._sum(name, records)
        state.figures.pop(LIVE, None)
        if state.live:
            await self._put_live(name, live)

    async def _put_live(self, name: str, records: tuple[Usage, ...]) -> None:
        accounts = self._accounts
        while True:
            version = accounts.version
            attachments = tuple(accounts.session(name).current)
            cells = await off_loop(len(records), attribution.tally, records, {}, attachments, accounts.timelines)
            earliest = await off_loop(len(records), attribution.earliest, records)
            if accounts.version == version:
                break
        state = accounts.session(name)
        state.figures[LIVE] = sum(cells.values(), Counts())
        accounts.put_sums(name, cells, earliest)
        state.minutes = await off_loop(len(records), burn.by_minute, records, self._clock())

    async def _sum(self, name: str, records: tuple[Usage, ...]) -> None:
        """Sum interstat's rows of a session; they count unless its transcripts do."""
        accounts = self._accounts
        while True:
            version = accounts.version
            scopes = {bead: tuple(accounts.scopes.get(bead, ())) for bead in {record.bead for record in records}}
            asked = tuple(accounts.session(name).attachments)
            cells, implied, earliest = await off_loop(
                len(records), _tally, name, records, scopes, asked, accounts.timelines
            )
            if accounts.version == version:
                break
        state = accounts.session(name)
        state.figures[self._source] = sum(cells.values(), Counts())
        changed = accounts.put_implied(name, implied)
        if name in self._instances:
            self._instances[name] = await off_loop(len(records), _instances, name, records)
        if not state.live:
            accounts.put_sums(name, cells, earliest)
            state.minutes = await off_loop(len(records), burn.by_minute, records, self._clock())
        elif changed and LIVE in state.figures:
            # The rows name another run than before: that is where the transcripts belong now.
            try:
                await self._put_live(name, await self._live.usage(name))
            except LedgerError as exc:
                self._writer.note_unreadable(exc)
                state.unsummed = True


def _tally(
    name: str,
    records: tuple[Usage, ...],
    scopes: attribution.Scopes,
    asked: tuple[Attachment, ...],
    timelines: Mapping[str, Timeline],
) -> tuple[dict[Cell, Counts], Attachment | None, int | None]:
    implied = None if asked else attribution.implied_attachment(name, records, scopes)
    attachments = asked or (() if implied is None else (implied,))
    return attribution.tally(records, scopes, attachments, timelines), implied, attribution.earliest(records)


def _instances(name: str, records: tuple[Usage, ...]) -> tuple[Instance, ...]:
    return tuple(
        Instance(name, record.agent, None, record.at)
        for record in records
        if record.at is not None and record.agent != MAIN
    )


def _tally_live(
    copies: tuple[Copy, ...], attachments: tuple[Attachment, ...], timelines: Mapping[str, Timeline]
) -> dict[Cell, Counts]:
    return attribution.tally(map(usage, copies), {}, attachments, timelines)


def _takes_the_earliest(earliest: int | None, delta: Delta) -> bool:
    """Tell whether a session's first response goes, with none as early in its place."""

    def is_earliest(copy: Copy) -> bool:
        return earliest is not None and copy.at is not None and copy.at <= earliest

    return any(map(is_earliest, delta.gone)) and not any(map(is_earliest, delta.new))
