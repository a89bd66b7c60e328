"""Freshness: what a run's numbers show, what a request needs them to show, and why they are stale.

Numbers carry a `Stamp`, a point in the histories of both sources:

* interstat's *epoch* grows whenever a commit may have landed. Rows that are read after `epoch()` returned N include
  everything that was committed before that call.
* The *transcript generation* grows whenever a transcript of a followed session is seen to have changed. A run's
  *required generation* is the last one at which a transcript of its sessions changed. A run has reached a generation
  when the transcripts of all its sessions have been read since.

A run is fresh if its stamp is at least the required stamp, in both parts, and its sums include what was read. A
request fixes the required stamps when it begins, so its answer includes everything that was written before it.
Requests that arrived together share one check of the sources (`Turn`).

A run is stale only because of a source that its own sessions are counted from. interstat is optional: a session whose
transcripts hold usage does not need it. A database that is absent or empty has no rows to wait for, so it makes a
session stale only if the session had rows in it, or if the database's path was configured.

Runs that ended more than 48 hours ago are not followed; their numbers need only be loaded.

Stamps are compared only here. `Accounts.put_attachments` resets one, and `Tallier` sets a session's `sums`. `History`
and `InterstatReader` each cache results with the epoch of the read, independently of stamps.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.model import Reading, SourceStatus
from fluxbudgetd.policy import runs
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals.account import NEVER, RunAccount, SessionAccount, Stamp, Sums
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.transcript_store import TranscriptStore
from fluxbudgetd.totals.turn import Turn

#: Run id → required stamp. A missing run has no requirement.
Required = Mapping[str, Stamp]
#: No requirements.
NOTHING: Required = {}

_ANY = Stamp(NEVER, 0)
# Python 3.11 takes four times as long for a member of an enumeration as for a global name.
_UNKNOWN, _UNREADABLE = Sums.UNKNOWN, Sums.UNREADABLE
# Comparing this many files takes half a millisecond. With more, a request leaves the comparison to the next batch.
_MOST_PATHS = 256
# An interstat database in these states has no rows.
_WITHOUT_ROWS = ("absent", "empty")
# Remember this many sessions that have no run, so that hooks outside any run are answered at once, too.
_MOST_UNKNOWN = 256


class Freshness:
    """Sets and compares stamps. `required`, `is_stale` and `stale_why` take microseconds; nothing waits for I/O."""

    def __init__(
        self,
        accounts: Accounts,
        interstat: InterstatReader,
        transcripts: TranscriptStore,
        writer: LedgerWriter,
        turn: Turn,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._interstat = interstat
        self._interstat_name = interstat.status.name
        self._transcripts = transcripts
        self._writer = writer
        self._turn = turn
        self._clock = clock
        self._last_epoch = NEVER
        self._generation = 0
        # Run id → required generation.
        self._required: dict[str, int] = {}
        # Session → the epoch and the accounts' version at which it had no run.
        self._unknown: dict[str, tuple[int, int]] = {}

    def is_followed(self, account: RunAccount) -> bool:
        """Return True if a run's sources are read: it is active, or ended within 48 hours."""
        # Only an ended run needs the time.
        return account.run.ended_at is None or runs.is_followed(account.run, self._clock())

    def required(self, accounts: Iterable[RunAccount], *, in_background: bool = False) -> Required:
        """Return what the numbers of these runs must show to be fresh as of this call.

        In the background, new transcripts of a session are searched for less often.
        """
        epoch = self._epoch()
        required: dict[str, Stamp] = {}
        for account in accounts:
            if self.is_followed(account):
                required[account.run.id] = Stamp(epoch, self._required_generation(account, in_background))
        return required

    def stale(self, accounts: Iterable[RunAccount], required: Required) -> list[str]:
        """Return the ids of those runs whose numbers do not show what is required."""
        return [account.run.id for account in accounts if self.is_stale(account, required)]

    def is_stale(self, account: RunAccount, required: Required) -> bool:
        """Return True if reading the sources can bring a run's numbers closer to what is required."""
        sums = account.sums
        if sums is _UNKNOWN:
            return True
        if not self.is_followed(account):
            return False
        needed, shown = required.get(account.run.id, _ANY), account.shown
        has_reached = shown.rows >= needed.rows and shown.transcripts >= needed.transcripts
        return not has_reached or sums is _UNREADABLE

    def stale_why(self, account: RunAccount, required: Required) -> str | None:
        """Return why a run's numbers do not show what is required; None if they do."""
        if not self.is_followed(account):
            return None
        sums = account.sums
        if sums is _UNKNOWN:
            return "sources: not read yet since fluxbudgetd started"
        if sums is _UNREADABLE:
            return f"ledger: {self._writer.fault or 'it could not be read a moment ago'}"
        needed = required.get(account.run.id, _ANY)
        return self._transcripts_stale_why(account, needed) or self._interstat_stale_why(account, needed)

    def is_known_stale(self, account: RunAccount) -> bool:
        """Return True if a run's last known numbers are known to be stale, without asking the sources."""
        return self.stale_why(account, NOTHING) is not None

    def is_fault(self, status: SourceStatus, accounts: Iterable[RunAccount]) -> bool:
        """Return True if a source cannot be read and is needed: it was configured, or one of these runs uses it."""
        if status.is_readable:
            return False
        if status.name != self._interstat_name or self._interstat.is_chosen:
            return True
        return any(self._counts_by_interstat(account, status) for account in accounts)

    def note_rows(self, account: RunAccount, reading: Reading, epoch: int) -> None:
        """Record that a run's rows were read, and summed, at an epoch."""
        account.interstat = reading.status
        # A session that joined after the read began is not in it. A missing file has no rows to wait for.
        is_complete = reading.status.is_readable and account.sessions.keys() <= reading.sessions.keys()
        if is_complete or reading.status.state == "absent":
            account.shown = account.shown._replace(rows=epoch)

    def note_transcripts(self, account: RunAccount, read: Collection[str], generation: int) -> None:
        """Record that the transcripts of these sessions were read, and summed, up to a generation."""
        if all(name in read for name in account.sessions):
            account.shown = account.shown._replace(transcripts=max(account.shown.transcripts, generation))

    async def changed(self, sessions: Collection[str]) -> tuple[set[str], int]:
        """Return the sessions whose transcripts may have changed, and the generation that reading them reaches.

        Once read, a transcript no longer looks changed, so the required generation of all its runs is raised first.
        """
        paths = sum(map(self._transcripts.path_count, sessions))
        before = self._generation
        changed = await off_loop(paths, _changed, self._transcripts, sessions)
        if changed:
            self._generation += 1
            for name in changed:
                for run in self._accounts.runs_joined_by(name):
                    self._required[run] = self._generation
        # Another request may have raised the generation for a file that the thread had already compared.
        return changed, before if paths > _MOST_PATHS // 2 else self._generation

    def unsettled(self, sessions: Iterable[str]) -> list[str]:
        """Return the sessions whose run is not certain, because they may have received a row with a run's bead."""
        seen = self.unknown_as_of()
        return [
            name
            for name in sessions
            if not _is_settled(self._accounts.sessions.get(name), seen[0]) and self._unknown.get(name) != seen
        ]

    def unknown_as_of(self) -> tuple[int, int]:
        """Return interstat's epoch and the accounts' version, as of which a session's lack of a run stays valid."""
        return self._epoch(), self._accounts.version

    def note_unknown(self, name: str, seen: tuple[int, int]) -> None:
        """Record that a session had no run as of `unknown_as_of()`."""
        while len(self._unknown) >= _MOST_UNKNOWN:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[name] = seen

    def _epoch(self) -> int:
        if self._turn.is_first(self._interstat):
            self._last_epoch = self._interstat.epoch()
        return self._last_epoch

    def _required_generation(self, account: RunAccount, in_background: bool) -> int:
        run = account.run.id
        if self._turn.is_first(run) and self._may_have_changed(account, in_background):
            self._generation += 1
            self._required[run] = self._generation
        return self._required.get(run, 0)

    def _may_have_changed(self, account: RunAccount, in_background: bool) -> bool:
        transcripts, paths = self._transcripts, 0
        for name in account.sessions:
            paths += transcripts.path_count(name)
            if paths > _MOST_PATHS or transcripts.changed(name, in_background=in_background):
                return True
        return False

    def _transcripts_stale_why(self, account: RunAccount, required: Stamp) -> str | None:
        if account.shown.transcripts < required.transcripts:
            return "transcripts: slow: current numbers were not available in time"
        for name in account.sessions:
            status, losses = self._transcripts.statuses.get(name), self._transcripts.losses.get(name)
            if status is not None and status.state == "unreadable":
                return f"{status.name}: {status.state}: {status.detail}"
            if losses is not None and losses.unfollowed:
                return f"transcripts: not followed: {'; '.join(losses.unfollowed)}"
        return None

    def _interstat_stale_why(self, account: RunAccount, required: Stamp) -> str | None:
        status = account.interstat
        if status is not None and not status.is_readable:
            why = f"{status.name}: {status.state}: {status.detail}"
        elif account.shown.rows < required.rows:
            why = f"{self._interstat_name}: slow: current numbers were not available in time"
        else:
            return None
        return why if self._counts_by_interstat(account, status) else None

    def _counts_by_interstat(self, account: RunAccount, status: SourceStatus | None) -> bool:
        """Return True if one of a run's sessions has rows in interstat's database that count, or may have."""
        may_have_rows = self._interstat.is_chosen or status is None or status.state not in _WITHOUT_ROWS
        for session in account.sessions.values():
            if not session.counts_transcripts and (may_have_rows or _has_rows(session, self._interstat_name)):
                return True
        return False


def _changed(transcripts: TranscriptStore, sessions: Iterable[str]) -> set[str]:
    return {name for name in sessions if transcripts.changed(name)}


def _has_rows(session: SessionAccount, source: str) -> bool:
    known = session.figures.get(source)
    return known is not None and known.records > 0


def _is_settled(session: SessionAccount | None, epoch: int) -> bool:
    """Return True if a client attached a session to its run, or its rows were read at this epoch."""
    return session is not None and bool(session.attachments or (session.current and session.rows_epoch == epoch))
