"""One call of a hook: its input, its session, and the run that the session works for."""

from contextlib import suppress

import anyio
import msgspec

from fluxbudgetd.errors import BadInputError, NoRunError
from fluxbudgetd.model import Attachment
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.server.handlers.hook_input import HookInput
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

#: A session started for one of these reasons chooses its run again; others keep theirs.
_FRESH_STARTS = ("startup", "resume")


class HookCall(msgspec.Struct, frozen=True):
    """A hook's request and what its input says. `session` is the calling session."""

    context: Context
    request: wire.Hook
    hook_input: HookInput
    session: str
    deadline: float

    @property
    def service(self) -> Service:
        """Return the daemon's service."""
        return self.context.service

    @property
    def hints(self) -> wire.Hints:
        """Return what the environment and the input say about the run."""
        return merged_hints(self.request.hints, self.hook_input)

    @property
    def is_news(self) -> bool:
        """Return True if the input may name a transcript in a Claude directory that is not known yet."""
        transcript = self.hook_input.transcript
        return transcript is not None and self.service.totals.transcripts.is_news(transcript)

    async def learn(self) -> None:
        """Search the Claude directory of the transcript from now on, even if the session has no run yet."""
        if self.hook_input.transcript is not None:
            with suppress(BadInputError), anyio.CancelScope(deadline=self.deadline):
                await self.service.totals.transcripts.learn_from(self.hook_input.transcript)

    async def find_run(self) -> RunAccount | None:
        """Return the active run that the session works for, or would join; None if there is none, or several."""
        request = self.request
        last = self._last_attachment()
        if last is not None and not (request.run or request.scope or request.session):
            current = self.service.accounts.runs[last.run]
            if last.until is not None:
                return None  # the user has detached it
            if current.run.status == "active" and self.hook_input.source not in _FRESH_STARTS:
                return current
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
        """Return the session's run as `find_run` does; attach the session first if it is not attached to that run."""
        account = await self.find_run()
        last = self._last_attachment()
        if account is not None and (last is None or last.run != account.run.id):
            await self.attach(account)
        return account

    async def attach(self, account: RunAccount) -> None:
        """Attach the session to a run."""
        lifecycle = self.service.lifecycle
        try:
            await lifecycle.attach(self.session, account, self.deadline, self.hook_input.transcript)
        except BadInputError:
            # The transcript may not be followed. Attach the session without it: its run is then stale, with the reason.
            await lifecycle.attach(self.session, account, self.deadline)
            if self.hook_input.transcript is not None:
                with suppress(BadInputError), anyio.CancelScope(deadline=self.deadline):
                    await self.service.totals.transcripts.name(
                        self.session, self.hook_input.transcript, even_if_refused=True
                    )

    def _last_attachment(self) -> Attachment | None:
        known = self.service.accounts.sessions.get(self.session)
        return known.current[-1] if known is not None and known.current else None


def merged_hints(hints: wire.Hints, hook_input: HookInput) -> wire.Hints:
    """Return the environment's hints, preceded by the session and the directory that the input names."""
    sessions = tuple(dict.fromkeys(name for name in (hook_input.session, *hints.sessions) if name is not None))
    return msgspec.structs.replace(hints, sessions=sessions, cwd=hook_input.cwd or hints.cwd)
