"""Start, change and end runs, and attach sessions to them.

The policy decides; a change is written to the ledger first, then to memory, and then answered.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import anyio
import msgspec

from fluxbudgetd.config.budget_rules import Demand
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.loosenings import Loosenings
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.errors import BadInputError, ConflictError, RequestTimeoutError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import Attachment, Caller, EventData, Run
from fluxbudgetd.policy import loosening, runs
from fluxbudgetd.totals import Totals, choosing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import By, RunSet, RunStart, RunStatus

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


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


class Lifecycle:
    """Changes runs and attachments, one change at a time. `on_runs_change` is called when a run starts or ends.

    Times within a run and within a session never decrease: if the clock was set back, a change gets the latest time
    before it, and arrival order decides.
    """

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        stored: StoredRuns,
        settings: Settings,
        clock: Callable[[], int],
        runs_lock: anyio.Lock,
        thresholds: Thresholds,
        loosenings: Loosenings,
        on_runs_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._places = totals.places
        self._transcripts = totals.transcripts
        self._refresher = totals.refresher
        self._tallier = totals.tallier
        self._stored = stored
        self._settings = settings
        self._clock = clock
        self._runs_lock = runs_lock
        self._thresholds = thresholds
        self._loosenings = loosenings
        self._on_runs_change = on_runs_change

    async def start(self, request: RunStart, deadline: float, caller: Caller | None = None) -> Change:
        """Start a run, or find the one that this request started before; attach the session, if one is named."""
        if request.whole and request.session is None:
            raise BadInputError("`whole` needs a session", "name the session, too")
        await self._settings.refresh(deadline)
        await self._name_transcript(request.session, request.transcript, deadline)
        await self._refresh_session(request.session, deadline)
        demand = await self._demand(request, deadline)
        try:
            return await self._start(request, demand, caller)
        finally:
            if request.session is not None:
                self._accounts.forget_unknown(request.session)

    async def _demand(self, request: RunStart, deadline: float) -> Demand:
        """Return what the files of a new run's project say about it; nothing about a run that has started already.

        Raises `RequestTimeoutError` if they cannot be read in time.
        """
        if self._known_run(request) is not None or not request.project_dir.startswith("/"):
            return Demand()
        now = anyio.current_time()
        with anyio.CancelScope(deadline=now + (deadline - now) / 2):
            return await self._settings.demand(await self._places.of(request.project_dir, deadline))
        raise RequestTimeoutError("the project's rules could not be read in time", "ask again, or give more --timeout")

    async def _start(self, request: RunStart, demand: Demand, caller: Caller | None) -> Change:
        async with self._runs_lock:
            known = self._known_run(request)
            if known is not None:
                runs.require_same(request, known.run, known.started_as, self._settings.config.runs)
                return await self._attach(request.session, known, caller, whole=request.whole)
            now = self._time_of_new_run(request.scope)
            asked = runs.new_run(request, request.id or self._new_id(), now, self._settings.config.runs)
            run = asked if demand.hard_by is None else msgspec.structs.replace(asked, enforcement="hard")
            moved_from = self._run_left(request.session, run.id)
            left = self._events_of_moving(request.session, moved_from, run.id, caller)
            attachments = self._attachments(request.session, run, now, whole=request.whole)
            await self._save_new(run, asked, attachments, left, caller)
            here = choosing.ids(self._accounts.active_in(run.project_dir))
            return Change(
                run,
                changed=True,
                moved_from=moved_from,
                tied=here if len(here) > 1 else (),
                hard_by=None if run == asked else demand.hard_by,
                rule_fault=demand.fault,
            )

    async def change(
        self, account: RunAccount, request: RunSet, deadline: float, caller: Caller | None = None
    ) -> Change:
        """Change a run's budget, warning percentage or enforcement.

        Thresholds that are passed under the new budget are reported with the change.
        """
        if account.run.status == "active":
            # Re-arming needs the run's numbers: without them, every threshold would be re-armed.
            await self._refresher.refresh([account.run.id], deadline=deadline)
            account.require_loaded()
        async with self._runs_lock:
            run = runs.changed_run(account.run, request)
            if run == account.run:
                return Change(run, changed=False)
            names = ("token_budget", "warn_pct", "enforcement")
            data: EventData = {
                name: getattr(run, name) for name in names if getattr(run, name) != getattr(account.run, name)
            }
            loosened = self._loosenings.events(account.run, loosening.of_change(account.run, run), caller)
            fired, passed = self._thresholds.after_change(account, run)
            events: list[NewEvent] = [("run.changed", data), *loosened, *passed]
            await self._stored.save(run, fired=fired, events=events, at=self._now(account), by=_by(caller))
            account.fired = fired
            self._accounts.put_run(run)
            return Change(run, changed=True)

    async def end(
        self, account: RunAccount, status: RunStatus, deadline: float, caller: Caller | None = None
    ) -> Change:
        """Finish or cancel a run. Its sources are followed for 48 hours."""
        if account.run.status == "active":
            # Report the thresholds that the run has passed by now.
            await self._refresher.refresh([account.run.id], deadline=deadline)
        async with self._runs_lock:
            if account.run.status == status:
                return Change(account.run, changed=False)
            if account.run.status != "active":
                raise ConflictError(
                    f"run {account.run.id} is already {account.run.status}", "an ended run cannot be changed"
                )
            now = self._now(account)
            run = msgspec.structs.replace(account.run, status=status, ended_at=now)
            loosened = self._loosenings.events(account.run, loosening.of_end(account.balance(), status), caller)
            fired, passed = self._thresholds.at_end(account)
            events: list[NewEvent] = [*passed, *loosened, ("run.finished", {"status": status})]
            await self._stored.save(run, fired=fired, events=events, at=now, by=_by(caller))
            account.fired = fired
            self._accounts.put_run(run)
            self._on_runs_change()
            return Change(run, changed=True)

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
        await self._name_transcript(session, transcript, deadline)
        if not runs.is_followed(account.run, self._clock()):
            raise ConflictError(
                f"run {account.run.id} ended more than 48 hours ago", "attach the session to a run that is followed"
            )
        await self._refresh_session(session, deadline)
        async with self._runs_lock:
            return await self._attach(session, account, caller, whole=whole)

    async def correct(self, session: str, account: RunAccount, deadline: float) -> None:
        """Have a session belong to this run since it joined its current one, which was chosen too early.

        If this run has started later, the session belongs to it from now on.
        """
        await self._refresh_session(session, deadline)
        async with self._runs_lock:
            current, run = self._current_attachment(session), account.run
            if current is None or current.run == run.id or current.origin != "asked" or current.since < run.started_at:
                await self._attach(session, account, None, whole=False)
                return
            is_first = len(self._accounts.session(session).current) == 1
            counts_from = run.started_at if is_first else current.since
            corrected = msgspec.structs.replace(current, run=run.id, counts_from=counts_from)
            data: EventData = {"attached": session, "moved_from": current.run}
            left = self._events_of_moving(session, current.run, run.id, None)
            await self._save_attachments([corrected], session, data, run.id, left, None)
            self._refresher.request_refresh({current.run})

    async def detach(
        self, session: str, account: RunAccount | None, deadline: float, caller: Caller | None = None
    ) -> Run:
        """End a session's current attachment and return its run; raises `BadInputError` if it is not attached.

        `account`, unless None, is the run that the session must be attached to. Raises `RequestTimeoutError` if the
        rows that may attach the session could not be read in time.
        """
        in_time = await self._refresh_session(session, deadline)
        async with self._runs_lock:
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
            await self._save_attachments([ended], session, {"detached": session}, run.id, left, caller)
            return run

    def _known_run(self, request: RunStart) -> RunAccount | None:
        by_scope = None
        if request.scope is not None:
            active = [run for run in self._accounts.scopes.get(request.scope, []) if run.status == "active"]
            by_scope = self._accounts.runs[active[-1].id] if active else None
        if request.id is None:
            return by_scope
        by_id = self._accounts.runs.get(request.id)
        if by_scope is not None and by_scope is not by_id:
            raise ConflictError(
                f"scope {request.scope!r} already has an active run: {by_scope.run.id}",
                f"finish it with 'fluxbudgetctl run finish --run {by_scope.run.id}'",
            )
        return by_id

    def _new_id(self) -> str:
        day = datetime.now(UTC).strftime("%Y%m%d")
        while (name := f"{day}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(5))}") in self._accounts.runs:
            continue
        return name

    def _current_attachment(self, session: str) -> Attachment | None:
        current = self._accounts.session(session).current
        return current[-1] if current and current[-1].until is None else None

    def _run_left(self, session: str | None, run_id: str) -> str | None:
        """Return the run that a session leaves when it is attached to this one."""
        current = None if session is None else self._current_attachment(session)
        return None if current is None or current.run == run_id else current.run

    def _time_of_new_run(self, scope: str | None) -> int:
        """Return the time of a run that starts now: after the earlier runs of its scope."""
        earlier = () if scope is None else self._accounts.scopes.get(scope, ())
        return max([self._clock(), *(self._accounts.runs[run.id].latest + 1 for run in earlier)])

    def _now(self, account: RunAccount) -> int:
        """Return the time of a change to a run."""
        return max(self._clock(), account.latest)

    def _time_of_attachment(self, session: str, now: int) -> int:
        """Return the time of a change to a session's attachments; `now` is the run's time."""
        attachments = self._accounts.session(session).attachments
        return max([now, *(max(each.since, each.until or 0) + 1 for each in attachments)])

    async def _name_transcript(self, session: str | None, transcript: str | None, deadline: float) -> None:
        if transcript is None:
            return
        if session is None:
            raise BadInputError("a transcript without its session", "name the session, too")
        runs.foreign_id("session id", session)
        with anyio.CancelScope(deadline=deadline) as scope:
            await self._transcripts.name(session, transcript)
        if scope.cancelled_caught:
            raise RequestTimeoutError("the transcript could not be checked in time", "ask again")

    async def _refresh_session(self, session: str | None, deadline: float) -> bool:
        """Refresh a session, so that its implied attachment is known before it moves. Return True if it was in time."""
        if session is None:
            return True
        runs.foreign_id("session id", session)
        return await self._refresher.refresh([], [session], deadline=deadline)

    def _attachments(self, session: str | None, run: Run, now: int, *, whole: bool) -> list[Attachment]:
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

    async def _attach(self, session: str | None, account: RunAccount, caller: Caller | None, *, whole: bool) -> Change:
        run = account.run
        attachments = self._attachments(session, run, self._now(account), whole=whole)
        if session is None or not attachments:
            return Change(run, changed=False)
        moved_from = self._run_left(session, run.id)
        left = self._events_of_moving(session, moved_from, run.id, caller)
        data: EventData = {"attached": session}
        if whole:
            data["usage"] = "whole"
        if moved_from is not None:
            data["moved_from"] = moved_from
        await self._save_attachments(attachments, session, data, run.id, left, caller)
        return Change(run, changed=True, moved_from=moved_from)

    def _events_of_moving(
        self, session: str | None, left: str | None, run_id: str, caller: Caller | None
    ) -> list[tuple[str, NewEvent]]:
        """Return the events that report that a session leaves a run; raise `RefusedError` if it may not."""
        if session is None or left is None:
            return []
        run = self._accounts.runs[left].run
        events = self._loosenings.events(run, loosening.of_leaving(run, session, run_id), caller)
        return [(left, event) for event in events]

    async def _save_attachments(
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
            attachments, run_id, events=events, of_others=of_others, at=at, by=_by(caller)
        )
        self._accounts.put_attachments(attachments)
        await self._tallier.retally(session)
        # The session's earlier usage may now count, and pass a threshold.
        self._refresher.request_refresh({attachment.run for attachment in attachments})

    async def _save_new(
        self,
        run: Run,
        asked: Run,
        attachments: Sequence[Attachment],
        of_others: Sequence[tuple[str, NewEvent]],
        caller: Caller | None,
    ) -> None:
        """Write a new run. `asked` is what was asked for, so that the same request finds it."""
        data: EventData = {"token_budget": run.token_budget, "scope": run.scope, "phase": run.phase}
        events: list[NewEvent] = [("run.started", data)]
        await self._stored.start(
            run,
            asked,
            attachments=attachments,
            events=events,
            of_others=of_others,
            at=run.started_at,
            by=_by(caller),
        )
        account = self._accounts.put_run(run, asked)
        self._accounts.put_attachments(attachments)
        for session in {attachment.session for attachment in attachments}:
            await self._tallier.retally(session)
        await self._tallier.find_sessions(account)
        self._refresher.request_refresh({run.id})
        self._on_runs_change()


def _by(caller: Caller | None) -> By | None:
    return None if caller is None else caller.by
