"""Changing runs and attachments: decided by the policy, on disk before it is remembered or answered."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import anyio
import msgspec

from fluxbudgetd.decisions.checks import Checks
from fluxbudgetd.decisions.parts import Parts
from fluxbudgetd.errors import BadInputError, ConflictError, RequestTimeoutError
from fluxbudgetd.ledger import NewEvent
from fluxbudgetd.model import Attachment, EventData, Run
from fluxbudgetd.policy import runs
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire.messages import RunSet, RunStart, RunStatus

_ID_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


class Lifecycle:
    """The operations that change something, one at a time. `changed` is called when runs begin or end."""

    def __init__(self, parts: Parts, gate: Checks, changed: Callable[[], None]) -> None:
        self._accounts = parts.accounts
        self._refresher = parts.totals.refresher
        self._tallies = parts.totals.tallies
        self._ledger = parts.ledger
        self._settings = parts.settings
        self._clock = parts.clock
        self._changing = parts.changing
        self._gate = gate
        self._changed = changed

    async def start(self, asked: RunStart, deadline: float) -> tuple[Run, bool]:
        """Start a run, or return the one that the same request started before, and whether anything changed."""
        await self._settings.refresh(deadline)
        await self._name(asked.session, asked.transcript, deadline)
        await self._look_at(asked.session, deadline)
        try:
            return await self._start(asked)
        finally:
            if asked.session is not None:
                self._accounts.forget_stranger(asked.session)

    async def _start(self, asked: RunStart) -> tuple[Run, bool]:
        async with self._changing:
            known = self._known_run(asked)
            if known is None:
                run = runs.new_run(asked, asked.id or self._new_id(), self._clock(), self._settings.config.runs)
                await self._save_new(run, self._moved(asked.session, run.id))
                return run, True
            runs.require_same(asked, known.run, known.started_as, self._settings.config.runs)
            return known.run, await self._attach(asked.session, known.run)

    async def change(self, state: RunAccount, asked: RunSet, deadline: float) -> tuple[Run, bool]:
        """Change a run's budget, warning percentage or enforcement; what a lower budget has passed is told at once."""
        if state.run.status == "active":
            # Thresholds of another budget are decided by what is spent; "nothing yet known" would arm them all again.
            await self._refresher.refresh([state.run.id], deadline=deadline)
            self._accounts.require_loaded(state)
        async with self._changing:
            run = runs.changed_run(state.run, asked)
            if run == state.run:
                return run, False
            names = ("token_budget", "warn_pct", "enforcement")
            data: EventData = {
                name: getattr(run, name) for name in names if getattr(run, name) != getattr(state.run, name)
            }
            fired, told = self._gate.fired_under(state, run)
            await self._ledger.save_run(run, fired=fired, events=[("run.changed", data), *told], at=self._clock())
            state.fired = fired
            self._accounts.put_run(run)
            return run, True

    async def end(self, state: RunAccount, status: RunStatus, deadline: float) -> tuple[Run, bool]:
        """Finish or cancel a run; its sources go on being followed for 48 hours."""
        if state.run.status == "active":
            # What it has passed by now is still told.
            await self._refresher.refresh([state.run.id], deadline=deadline)
        async with self._changing:
            if state.run.status == status:
                return state.run, False
            if state.run.status != "active":
                raise ConflictError(f"run {state.run.id} is {state.run.status} already", "an ended run stays as it is")
            run = msgspec.structs.replace(state.run, status=status, ended_at=self._clock())
            fired, told = self._gate.fired_now(state)
            ended: NewEvent = "run.finished", {"status": status}
            await self._ledger.save_run(run, fired=fired, events=[*told, ended], at=self._clock())
            state.fired = fired
            self._accounts.put_run(run)
            self._changed()
            return run, True

    async def attach(self, session: str, state: RunAccount, deadline: float, transcript: str | None = None) -> bool:
        """Attach a session to a run from now on; tells whether anything changed.

        Raises `BadInputError` for a transcript outside Claude's directory.
        """
        await self._name(session, transcript, deadline)
        if not runs.is_followed(state.run, self._clock()):
            raise ConflictError(
                f"run {state.run.id} ended more than 48 hours ago", "attach the session to a run that is followed"
            )
        await self._look_at(session, deadline)
        async with self._changing:
            return await self._attach(session, state.run)

    async def detach(self, session: str, state: RunAccount | None, deadline: float) -> Run:
        """End a session's present attachment (to this run, when one is given)."""
        await self._look_at(session, deadline)
        async with self._changing:
            present = self._present(session)
            if present is None or (state is not None and present.run != state.run.id):
                self._accounts.forget_stranger(session)
                where = "any run" if state is None else f"run {state.run.id}"
                raise BadInputError(f"session {session!r} is not attached to {where}", "see 'fluxbudgetctl run show'")
            ended = msgspec.structs.replace(present, until=self._instant(session))
            await self._save_attachments([ended], session, {"detached": session}, present.run)
            return self._accounts.runs[present.run].run

    def _known_run(self, asked: RunStart) -> RunAccount | None:
        by_scope = None
        if asked.scope is not None:
            active = [run for run in self._accounts.scopes.get(asked.scope, []) if run.status == "active"]
            by_scope = self._accounts.runs[active[-1].id] if active else None
        if asked.id is None:
            return by_scope
        by_id = self._accounts.runs.get(asked.id)
        if by_scope is not None and by_scope is not by_id:
            raise ConflictError(
                f"scope {asked.scope!r} has an active run already: {by_scope.run.id}",
                f"finish it with 'fluxbudgetctl run finish --run {by_scope.run.id}'",
            )
        return by_id

    def _new_id(self) -> str:
        day = datetime.now(UTC).strftime("%Y%m%d")
        while (name := f"{day}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(5))}") in self._accounts.runs:
            continue
        return name

    def _present(self, session: str) -> Attachment | None:
        current = self._accounts.session(session).current
        return current[-1] if current and current[-1].until is None else None

    def _instant(self, session: str) -> int:
        """Return now, but after everything that was noted of the session: clocks may be set back."""
        noted = [max(one.since, one.until or 0) for one in self._accounts.session(session).attachments]
        return max([self._clock(), *(at + 1 for at in noted)])

    async def _name(self, session: str | None, transcript: str | None, deadline: float) -> None:
        if transcript is None:
            return
        if session is None:
            raise BadInputError("a transcript without its session", "name the session, too")
        runs.foreign_id("session id", session)
        with anyio.CancelScope(deadline=deadline) as scope:
            await self._refresher.live.name(session, transcript)
        if scope.cancelled_caught:
            raise RequestTimeoutError("the transcript could not be looked at in time", "ask again")

    async def _look_at(self, session: str | None, deadline: float) -> None:
        """Read a session: what its rows say of it so far becomes its first attachment when it is moved."""
        if session is not None:
            runs.foreign_id("session id", session)
            await self._refresher.refresh([], [session], deadline=deadline)

    def _moved(self, session: str | None, run_id: str) -> list[Attachment]:
        """Return the attachments to write so that a session belongs to a run from now on; none when it does."""
        present = None if session is None else self._present(session)
        if session is None or (present is not None and present.run == run_id):
            return []
        now = self._instant(session)
        first = not self._accounts.session(session).current
        new = Attachment(session=session, run=run_id, since=now, until=None, first=first, origin="asked")
        return [new] if present is None else [msgspec.structs.replace(present, until=now), new]

    async def _attach(self, session: str | None, run: Run) -> bool:
        attachments = self._moved(session, run.id)
        if session is None or not attachments:
            return False
        await self._save_attachments(attachments, session, {"attached": session}, run.id)
        return True

    async def _save_attachments(
        self, attachments: Iterable[Attachment], session: str, data: EventData, run_id: str
    ) -> None:
        written = list(attachments)
        await self._ledger.save_attachments(written, run_id, data, self._clock())
        self._accounts.put_attachments(written)
        await self._tallies.retally(session)
        # What the session has used so far counts from now on, and may pass a threshold.
        self._refresher.wish({one.run for one in written})

    async def _save_new(self, run: Run, attachments: Sequence[Attachment]) -> None:
        data: EventData = {"token_budget": run.token_budget, "scope": run.scope, "phase": run.phase}
        await self._ledger.start_run(run, attachments=attachments, events=[("run.started", data)], at=self._clock())
        state = self._accounts.put_run(run)
        self._accounts.put_attachments(attachments)
        # Rows that name the scope may have counted for another run until now.
        naming = set() if run.scope is None else await self._tallies.sessions_naming(run.scope)
        for session in naming:
            self._accounts.join(state, session)
        for session in naming.union(one.session for one in attachments):
            await self._tallies.retally(session)
        state.touched = True
        self._refresher.wish({run.id})
        self._changed()
