"""Attach sessions to runs, and detach them.

A change is written to the ledger first, then to memory, and then answered.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.decisions.loosenings import Loosenings
from fluxbudgetd.errors import BadInputError, ConflictError, RequestTimeoutError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import Attachment, Caller, EventData, Run, SessionClaim
from fluxbudgetd.policy import claims, loosening, runs
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import By


class Change(NamedTuple):
    """A run after a request, and whether it or its sessions changed.

    `moved_from` is the run that the session left for this one, None if it left none. `tied` are all active runs of a
    new run's directory, if it is not the only one. `hard_by` is the project's file because of which a new run is hard,
    `rule_fault` says why such a file could not be read.
    """

    run: Run
    changed: bool
    moved_from: str | None = None
    tied: tuple[str, ...] = ()
    hard_by: str | None = None
    rule_fault: str | None = None


class SessionAttachments:
    """Changes attachments, one change at a time.

    `Lifecycle` holds `runs_lock` when it calls `run_left`, `events_of_moving`, `since_now` or `attach_now`.

    Times within a session never decrease: if the clock was set back, a change gets the latest time before it, and
    arrival order decides.
    """

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        stored: StoredRuns,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
        loosenings: Loosenings,
    ) -> None:
        self._accounts = accounts
        self._transcripts = totals.transcripts
        self._refresher = totals.refresher
        self._tallier = totals.tallier
        self._stored = stored
        self._clock = clock
        #: Held while a run or an attachment is changed.
        self.runs_lock = runs_lock
        self._loosenings = loosenings

    async def attach(
        self,
        session: str,
        account: RunAccount,
        deadline: float,
        transcript: str | None = None,
        *,
        whole: bool = False,
        caller: Caller | None = None,
    ) -> Change:
        """Attach a session to a run from now on; `policy.attribution` defines which of its usage counts.

        `whole`: count all of the session's usage that belongs to no other run. This also widens an existing attachment.
        Raises `BadInputError` for a transcript that may not be followed, `ConflictError` for a run that ended more than
        48 hours ago.
        """
        await self.name_transcript(session, transcript, deadline)
        if not runs.is_followed(account.run, self._clock()):
            raise ConflictError(
                f"run {account.run.id} ended more than 48 hours ago", "attach the session to a run that is followed"
            )
        await self.refresh_session(session, deadline)
        async with self.runs_lock:
            return await self.attach_now(session, account, caller, whole=whole)

    async def correct(self, session: str, account: RunAccount, deadline: float) -> None:
        """Move a session to this run, as of the time when it joined its current one, which was chosen too early.

        If this run has started later, the session belongs to it from now on.
        """
        await self.refresh_session(session, deadline)
        async with self.runs_lock:
            current, run = self._current_attachment(session), account.run
            if current is None or current.run == run.id or current.origin != "asked" or current.since < run.started_at:
                await self.attach_now(session, account, None, whole=False)
                return
            is_first = len(self._accounts.session(session).current) == 1
            counts_from = run.started_at if is_first else current.since
            corrected = msgspec.structs.replace(current, run=run.id, counts_from=counts_from)
            data: EventData = {"attached": session, "moved_from": current.run}
            left = self.events_of_moving(session, current.run, run.id, None)
            await self._save([corrected], session, data, run.id, left, None)
            self._refresher.request_refresh({current.run})

    async def detach(
        self, session: str, account: RunAccount | None, deadline: float, caller: Caller | None = None
    ) -> Run:
        """End a session's current attachment and return its run; raises `BadInputError` if it is not attached.

        `account`, unless None, is the run that the session must be attached to. Raises `RequestTimeoutError` if the
        rows that may attach the session could not be read in time.
        """
        in_time = await self.refresh_session(session, deadline)
        async with self.runs_lock:
            current = self._current_attachment(session)
            if current is None and not in_time:
                raise RequestTimeoutError(f"session {session!r} could not be read in time", "give more --timeout")
            if current is None or (account is not None and current.run != account.run.id):
                self._accounts.forget_unknown(session)
                where = "any run" if account is None else f"run {account.run.id}"
                raise BadInputError(f"session {session!r} is not attached to {where}", "see 'fluxbudgetctl run show'")
            run = self._accounts.runs[current.run].run
            loosened = self._loosenings.events(run, loosening.of_leaving(run, session, None), caller)
            now = self._time_of_attachment(session, self._now(self._accounts.runs[current.run]))
            ended = msgspec.structs.replace(current, until=now)
            left = [(run.id, event) for event in loosened]
            await self._save([ended], session, {"detached": session}, run.id, left, caller)
            return run

    async def claim(self, claim: SessionClaim, account: RunAccount, deadline: float) -> str | None:
        """Attach a session because of a claim. Return why the session is not moved, if that is not possible, or None.

        Raises `LedgerError`. `policy.claims` decides what changes.
        """
        claim = claim._replace(at=min(claim.at, self._clock()))  # the clock may have been set back
        known = self._accounts.sessions.get(claim.session)
        if known is not None and not claims.attachments(claim, account.run.id, known.current):
            return None
        await self.refresh_session(claim.session, deadline)
        async with self.runs_lock:
            run = account.run
            attachments = claims.attachments(claim, run.id, self._accounts.session(claim.session).current)
            moved_from = self.run_left(claim.session, run.id)
            left = None if moved_from is None else self._accounts.runs[moved_from].run
            if not attachments:
                return None
            if left is not None and left.status == "active" and left.enforcement == "hard":
                return (
                    f"session {claim.session} stays in run {left.id}, which is hard; intercore says it is in {run.id}"
                )
            data: EventData = {"attached": claim.session, "via": "intercore"}
            if moved_from is not None:
                data["moved_from"] = moved_from
            await self._save(attachments, claim.session, data, run.id, (), None)
        return None

    def _current_attachment(self, session: str) -> Attachment | None:
        current = self._accounts.session(session).current
        return current[-1] if current and current[-1].until is None else None

    def run_left(self, session: str | None, run_id: str) -> str | None:
        """Return the run that a session leaves when it is attached to this one."""
        current = None if session is None else self._current_attachment(session)
        return None if current is None or current.run == run_id else current.run

    def _time_of_attachment(self, session: str, now: int) -> int:
        """Return the time of a change to a session's attachments; `now` is the run's time."""
        attachments = self._accounts.session(session).attachments
        return max([now, *(max(each.since, each.until or 0) + 1 for each in attachments)])

    async def name_transcript(self, session: str | None, transcript: str | None, deadline: float) -> None:
        """Set the path of a session's transcript; raise `BadInputError` if it may not be followed."""
        if transcript is None:
            return
        if session is None:
            raise BadInputError("a transcript without its session", "name the session, too")
        runs.foreign_id("session id", session)
        with anyio.CancelScope(deadline=deadline) as scope:
            await self._transcripts.name(session, transcript)
        if scope.cancelled_caught:
            raise RequestTimeoutError("the transcript could not be checked in time", "ask again")

    async def refresh_session(self, session: str | None, deadline: float) -> bool:
        """Refresh a session, so that its implied attachment is known before it moves. Return True if it was in time."""
        if session is None:
            return True
        runs.foreign_id("session id", session)
        return await self._refresher.refresh([], [session], deadline=deadline)

    def since_now(self, session: str | None, run: Run, now: int, *, whole: bool) -> list[Attachment]:
        """Return the attachments to write so that a session belongs to a run from now on; none if it does already."""
        if session is None:
            return []
        current = self._current_attachment(session)
        if current is not None and current.run == run.id:
            is_wider = whole and current.counts_from > 0
            return [msgspec.structs.replace(current, counts_from=0)] if is_wider else []
        since = self._time_of_attachment(session, now)
        is_first = not self._accounts.session(session).current
        counts_from = 0 if whole else run.started_at if is_first else since
        new = Attachment(session=session, run=run.id, since=since, until=None, counts_from=counts_from, origin="asked")
        return [new] if current is None else [msgspec.structs.replace(current, until=since), new]

    async def attach_now(
        self, session: str | None, account: RunAccount, caller: Caller | None, *, whole: bool
    ) -> Change:
        """Attach a session to a run, if one is given."""
        run = account.run
        attachments = self.since_now(session, run, self._now(account), whole=whole)
        if session is None or not attachments:
            return Change(run, changed=False)
        moved_from = self.run_left(session, run.id)
        left = self.events_of_moving(session, moved_from, run.id, caller)
        data: EventData = {"attached": session}
        if whole:
            data["usage"] = "whole"
        if moved_from is not None:
            data["moved_from"] = moved_from
        await self._save(attachments, session, data, run.id, left, caller)
        return Change(run, changed=True, moved_from=moved_from)

    def events_of_moving(
        self, session: str | None, left: str | None, run_id: str, caller: Caller | None
    ) -> list[tuple[str, NewEvent]]:
        """Return the events that report that a session leaves a run; raise `RefusedError` if it may not."""
        if session is None or left is None:
            return []
        run = self._accounts.runs[left].run
        events = self._loosenings.events(run, loosening.of_leaving(run, session, run_id), caller)
        return [(left, event) for event in events]

    async def _save(
        self,
        attachments: Sequence[Attachment],
        session: str,
        data: EventData,
        run_id: str,
        of_others: Sequence[tuple[str, NewEvent]],
        caller: Caller | None,
    ) -> None:
        at = self._now(self._accounts.runs[run_id])
        events: list[NewEvent] = [("run.changed", data)]
        await self._stored.save_attachments(
            attachments, run_id, events=events, of_others=of_others, at=at, by=by(caller)
        )
        self._accounts.put_attachments(attachments)
        await self._tallier.retally(session)
        # The session's earlier usage may now count, and pass a threshold.
        self._refresher.request_refresh({attachment.run for attachment in attachments})

    def _now(self, account: RunAccount) -> int:
        """Return the time of a change to a run."""
        return max(self._clock(), account.latest)


def by(caller: Caller | None) -> By | None:
    """Return the process to record as the cause of a change; None for a hook."""
    return None if caller is None else caller.by
