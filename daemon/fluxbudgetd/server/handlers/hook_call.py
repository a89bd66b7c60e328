"""One call of a hook: its input, its session, and the run that the session works for."""

import msgspec

from fluxbudgetd.errors import BadInputError, NoRunError
from fluxbudgetd.model import Attachment
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.server.handlers.hook_input import HookInput
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

#: Sessions that start for these reasons choose their run by the environment again. Others keep their run.
_FRESH_STARTS = ("startup", "resume")


class HookCall(msgspec.Struct, frozen=True):
    """A hook's request and what its input says. `session` is the calling session."""

    context: Context
    request: wire.Hook
    given: HookInput
    session: str
    deadline: float

    @property
    def service(self) -> Service:
        """Return the daemon's service."""
        return self.context.service

    @property
    def hints(self) -> wire.Hints:
        """Return what the environment and the input say about the run."""
        return merged_hints(self.request.hints, self.given)

    async def find_run(self) -> RunAccount | None:
        """Return the active run that the session works for, or would join; None if there is none, or several."""
        request = self.request
        last = self._last_attachment()
        if last is not None and not (request.run or request.scope or request.session):
            present = self.service.accounts.runs[last.run]
            if last.until is not None:
                return None  # a person has detached it
            if present.run.status == "active" and self.given.source not in _FRESH_STARTS:
                return present
        # The input's directory may be a symlink; the hook's own working directory is resolved.
        directories = dict.fromkeys((self.hints.cwd, request.hints.cwd))
        # A session that outlives its run joins the next one of its directory.
        for sessions in (self.hints.sessions, ()):
            for cwd in directories:
                hints = msgspec.structs.replace(self.hints, sessions=sessions, cwd=cwd)
                try:
                    account = await self.service.totals.find_if_any(
                        request.run, request.scope, request.session, hints, self.deadline
                    )
                except NoRunError:
                    return None
                if account is not None and account.run.status == "active":
                    return account
        return None

    async def join_run(self) -> RunAccount | None:
        """Return the session's run, as `find_run`; a session without one is attached to it first."""
        account = await self.find_run()
        last = self._last_attachment()
        if account is not None and (last is None or last.run != account.run.id):
            await self.attach(account)
        return account

    async def attach(self, account: RunAccount) -> None:
        """Attach the session to a run."""
        lifecycle = self.service.lifecycle
        try:
            await lifecycle.attach(self.session, account, self.deadline, self.given.transcript)
        except BadInputError:
            # The transcript's path is not one that may be followed. The session is attached all the same.
            await lifecycle.attach(self.session, account, self.deadline)

    def _last_attachment(self) -> Attachment | None:
        known = self.service.accounts.sessions.get(self.session)
        return known.current[-1] if known is not None and known.current else None


def merged_hints(hints: wire.Hints, given: HookInput) -> wire.Hints:
    """Return the environment's hints, preceded by the session and the directory that the input names."""
    sessions = tuple(dict.fromkeys(name for name in (given.session, *hints.sessions) if name is not None))
    return msgspec.structs.replace(hints, sessions=sessions, cwd=given.cwd or hints.cwd)
