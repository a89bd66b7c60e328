"""Start, change and end runs.

The policy decides; a change is written to the ledger first, then to memory, and then answered.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import anyio
import msgspec

from fluxbudgetd.config.budget_rules import Demand
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.attachments import Change, SessionAttachments, by
from fluxbudgetd.decisions.loosenings import Loosenings
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.errors import BadInputError, ConflictError, RequestTimeoutError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.model import Attachment, Caller, EventData, Run
from fluxbudgetd.policy import adoption, bead_labels, loosening, runs
from fluxbudgetd.totals import Totals, choosing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import RunSet, RunStart, RunStatus

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


class Lifecycle:
    """Changes runs, one change at a time. `on_runs_change` is called when a run starts or ends.

    Times within a run never decrease: if the clock was set back, a change gets the latest time before it, and arrival
    order decides.
    """

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        attachments: SessionAttachments,
        stored: StoredRuns,
        settings: Settings,
        clock: Callable[[], int],
        thresholds: Thresholds,
        loosenings: Loosenings,
        on_runs_change: Callable[[], None],
    ) -> None:
        self._accounts = accounts
        self._places = totals.places
        self._refresher = totals.refresher
        self._tallier = totals.tallier
        self._attachments = attachments
        self._stored = stored
        self._settings = settings
        self._clock = clock
        self._runs_lock = attachments.runs_lock
        self._thresholds = thresholds
        self._loosenings = loosenings
        self._on_runs_change = on_runs_change

    async def start(self, request: RunStart, deadline: float, caller: Caller | None = None) -> Change:
        """Start a run, or find the one that this request started before; attach the session, if one is named."""
        if request.whole and request.session is None:
            raise BadInputError("`whole` needs a session", "name the session, too")
        await self._settings.refresh(deadline)
        await self._attachments.name_transcript(request.session, request.transcript, deadline)
        await self._attachments.refresh_session(request.session, deadline)
        known = self._known_run(request)
        if known is not None and known.started_as.adopted is not None:
            await self._refresher.refresh([known.run.id], deadline=deadline)
        demand = await self._demand(request, deadline)
        try:
            return await self._start(request, demand, caller)
        finally:
            if request.session is not None:
                self._accounts.forget_unknown(request.session)

    async def adopt(self, request: RunStart, made: Callable[[Run], Run], at: int, deadline: float) -> RunAccount | None:
        """Start a run for a bead; return None if its scope has had a run before.

        `made` changes the requested run before it is written. The run counts as started at `at`.
        """
        await self._settings.refresh(deadline)
        demand = await self._demand(request, deadline)
        async with self._runs_lock:
            if request.scope is None or self._accounts.run_of_scope(request.scope) is not None:
                return None
            asked = made(runs.new_run(request, self._new_id(), at, self._settings.config.runs))
            run = asked if demand.hard_by is None else msgspec.structs.replace(asked, enforcement="hard")
            await self._save_new(run, asked, (), (), None)
            return self._accounts.runs[run.id]

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
                has_changed = await self._take_over(request, known, caller)
                change = await self._attachments.attach_now(request.session, known, caller, whole=request.whole)
                return change._replace(changed=change.changed or has_changed)
            now = self._time_of_new_run(request.scope)
            asked = runs.new_run(request, request.id or self._new_id(), now, self._settings.config.runs)
            run = asked if demand.hard_by is None else msgspec.structs.replace(asked, enforcement="hard")
            moved_from = self._attachments.run_left(request.session, run.id)
            left = self._attachments.events_of_moving(request.session, moved_from, run.id, caller)
            attachments = self._attachments.since_now(request.session, run, now, whole=request.whole)
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

    async def _take_over(self, request: RunStart, known: RunAccount, caller: Caller | None) -> bool:
        """Require that a request to start a run can mean this existing run. Return True if it has changed the run.

        Only an adopted run is changed.
        """
        if known.started_as.adopted is None:
            runs.require_same(request, known.run, known.started_as, self._settings.config.runs)
            return False
        settings = runs.taken_over(request, known.run, self._settings.config.runs)
        return runs.names_set(settings) != () and (await self._change(known, settings, caller)).changed

    async def change(
        self, account: RunAccount, request: RunSet, deadline: float, caller: Caller | None = None
    ) -> Change:
        """Change a run's budget, warning percentage or enforcement.

        Thresholds that are passed under the new budget are reported with the change.
        """
        if account.run.status == "active":
            await self._refresher.refresh([account.run.id], deadline=deadline)
        async with self._runs_lock:
            return await self._change(account, request, caller)

    async def _change(self, account: RunAccount, request: RunSet, caller: Caller | None) -> Change:
        if account.run.status == "active":
            # Re-arming needs the run's numbers: without them, every threshold would be re-armed.
            account.require_loaded()
        run = adoption.set_by_hand(runs.changed_run(account.run, request), runs.names_set(request))
        if run == account.run:
            return Change(run, changed=False)
        names = ("token_budget", "warn_pct", "enforcement")
        data: EventData = {
            name: getattr(run, name) for name in names if getattr(run, name) != getattr(account.run, name)
        }
        if run.adopted is not None and run.adopted != account.run.adopted:
            data["kept"] = ", ".join(run.adopted.kept)
        loosened = self._loosenings.events(account.run, loosening.of_change(account.run, run), caller)
        fired, passed = self._thresholds.after_change(account, run)
        events: list[NewEvent] = [("run.changed", data), *loosened, *passed]
        await self._stored.save(run, fired=fired, events=events, at=self._now(account), by=by(caller))
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
            ended = msgspec.structs.replace(account.run, status=status, ended_at=now)
            run = adoption.set_by_hand(ended, ("status",))
            loosened = self._loosenings.events(account.run, loosening.of_end(account.balance(), status), caller)
            fired, passed = self._thresholds.at_end(account)
            events: list[NewEvent] = [*passed, *loosened, ("run.finished", {"status": status})]
            await self._stored.save(run, fired=fired, events=events, at=now, by=by(caller))
            account.fired = fired
            self._accounts.put_run(run)
            self._on_runs_change()
            return Change(run, changed=True)

    def _known_run(self, request: RunStart) -> RunAccount | None:
        by_scope = None
        if request.scope is not None:
            found = self._accounts.run_of_scope(request.scope)
            by_scope = found if found is not None and found.run.status == "active" else None
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

    def _time_of_new_run(self, scope: str | None) -> int:
        """Return the time of a run that starts now: after the earlier runs of its scope."""
        earlier = () if scope is None else self._accounts.scopes.get(scope, ())
        return max([self._clock(), *(self._accounts.runs[run.id].latest + 1 for run in earlier)])

    def _now(self, account: RunAccount) -> int:
        """Return the time of a change to a run."""
        return max(self._clock(), account.latest)

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
        if run.adopted is not None:
            data["via"] = bead_labels.VIA
        events: list[NewEvent] = [("run.started", data)]
        await self._stored.start(
            run,
            asked,
            attachments=attachments,
            events=events,
            of_others=of_others,
            at=run.started_at,
            by=by(caller),
        )
        account = self._accounts.put_run(run, asked)
        self._accounts.put_attachments(attachments)
        for session in {attachment.session for attachment in attachments}:
            await self._tallier.retally(session)
        await self._tallier.find_sessions(account)
        self._refresher.request_refresh({run.id})
        self._on_runs_change()
