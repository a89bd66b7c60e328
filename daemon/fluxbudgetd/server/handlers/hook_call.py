"""One call of a hook: its input, its session, and the run that the session works for."""

from contextlib import suppress

import anyio
import msgspec

from fluxbudgetd.errors import BadInputError, NoRunError
from fluxbudgetd.model import Attachment
from fluxbudgetd.server.handlers import origins
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.server.handlers.hook_input import HookInput
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.choosing import Choice, no_run
from fluxbudgetd.wire import messages as wire

#: Events that the session does not wait for.
_UNAWAITED = ("SubagentStop", "SessionEnd")
# In place of a model: the session's.
_INHERITED = "inherit"


class HookCall(msgspec.Struct):
    """A hook's request and what its input says. `session` is the calling session, `pid` the hook's process.

    After `find_run`, `tied` is the choice if it was one of several runs of the directory, and `missing` says why there
    is no run. `is_corrected`: the session has joined another run before it was known which session it continues.
    """

    context: Context
    request: wire.Hook
    pid: int
    hook_input: HookInput
    session: str
    deadline: float
    tied: Choice | None = None
    missing: NoRunError | None = None
    is_corrected: bool = False

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
        """Return True if the hook may show a process, or a Claude directory, that is not known yet."""
        transcript = self.hook_input.transcript
        is_new = transcript is not None and self.service.totals.transcripts.is_news(transcript)
        return is_new or self._may_show_process

    @property
    def _may_show_process(self) -> bool:
        """Return True if the session's process may not be known yet, and is alive.

        A hook that nothing waits for may outlive it, and then has another parent. A session that is resumed in another
        process shows it at its start; if that hook got no answer or is not installed, with the next prompt.
        """
        event = self.hook_input.event
        is_known = event not in ("SessionStart", "UserPromptSubmit") and self.service.callers.is_registered(
            self.session
        )
        return not is_known and event not in _UNAWAITED

    @property
    def launch_model(self) -> str | None:
        """Return the model of the sub-agent that the event is about: its launch's, else the session's."""
        named = self.hook_input.subagent_model
        return named if named not in (None, _INHERITED) else self.service.totals.model_of(self.session)

    async def learn(self) -> None:
        """Remember the session's process, and search the transcript's Claude directory from now on.

        Both happen even if the session has no run yet.
        """
        if self._may_show_process:
            await self.service.callers.register(self.session, self.pid)
        if self.hook_input.transcript is not None:
            with suppress(BadInputError), anyio.CancelScope(deadline=self.deadline):
                await self.service.totals.transcripts.learn_from(self.hook_input.transcript)

    async def find_run(self) -> RunAccount | None:
        """Return the active run that the session works for, or would join; None if there is none.

        Then `missing` says why, unless the user has detached the session. Of several runs of the directory, a hard one
        applies, and `tied` has it.
        """
        self.missing = self.tied = None
        await self._refresh_runs()
        last = self._last_attachment()
        if last is not None and last.until is not None and not self._is_named:
            return None  # the user has detached it
        if self.hook_input.source != origins.NEW and not self._is_named:
            own = None if last is None else self.service.accounts.runs[last.run]
            if self.context.origins.is_open(self.session, None if own is None else own.run.id):
                continued = await self.context.origins.run_of(
                    self.service, self.session, self.hook_input, self.request.hints.sessions, self.deadline
                )
                self.is_corrected = last is not None and continued is not None
                own = continued or own
            if own is not None and own.run.status == "active":
                return own
        if (bound := self._hard_run(last)) is not None:
            return bound
        choice = await self._choose()
        if choice is None:
            return await self._outer_run()
        self.tied = choice if choice.tied else None
        return choice.account

    async def _refresh_runs(self) -> None:
        """Bring intercore's runs up to date: the session's run, and the runs of its directory.

        The directory is examined at events that begin something, and while the session has no run.
        """
        account = self.service.accounts.run_of_session(self.session)
        is_settled = account is not None and account.run.status == "active"
        begins = self.hook_input.event in ("SessionStart", "UserPromptSubmit")
        directory = None if is_settled and not begins else self.hints.cwd
        await self.service.adoption.refresh(directory, account, self.deadline)

    def _hard_run(self, last: Attachment | None) -> RunAccount | None:
        """Return the hard run that the session is attached to. No hook moves it: any process can call a hook."""
        if last is None or last.until is not None:
            return None
        account = self.service.accounts.runs[last.run]
        return account if _is_binding(account) else None

    async def _outer_run(self) -> RunAccount | None:
        """Return the hard run of a session that has started this one, for instance with `claude -p` in Bash."""
        if not any(_is_binding(account) for account in self.service.accounts.active()):
            return None
        caller = await self.service.callers.look_up(self.pid)
        for session in reversed(caller.sessions):
            account = self.service.accounts.run_of_session(session)
            if session != self.session and account is not None and _is_binding(account):
                self.missing = None
                return account
        return None

    async def _choose(self) -> Choice | None:
        """Return the active run that the hints lead to; None if there is none."""
        request = self.request
        # A directory that the daemon cannot examine may be a symlink; the hook's own working directory is resolved.
        directories = dict.fromkeys((self.hints.cwd, request.hints.cwd))
        self.missing = no_run(self.hints)
        has_ended = False
        for sessions in (self.hints.sessions, ()):
            for cwd in directories:
                hints = msgspec.structs.replace(self.hints, sessions=sessions, cwd=cwd)
                try:
                    choice = await self.service.totals.choose_if_any(
                        request.run, request.scope, request.session, hints, self.deadline
                    )
                except NoRunError as exc:
                    self.missing = exc
                    return None
                if choice is not None and choice.account.run.status == "active":
                    self.missing = None
                    return choice
                has_ended = has_ended or choice is not None
            if not has_ended:
                break
            # A session that outlives its run joins the next one of its directory.
        return None

    @property
    def _is_named(self) -> bool:
        """Return True if the hook's command line names a run."""
        return bool(self.request.run or self.request.scope or self.request.session)

    async def join_run(self) -> RunAccount | None:
        """Return the session's run as `find_run` does; attach the session first if it is not attached to that run."""
        account = await self.find_run()
        last = self._last_attachment()
        if account is not None and (last is None or last.run != account.run.id):
            await self.attach(account)
        return account

    async def attach(self, account: RunAccount) -> None:
        """Attach the session to a run."""
        attachments = self.service.attachments
        if self.is_corrected:
            await attachments.correct(self.session, account, self.deadline)
            return
        self.context.origins.note_joined(self.session, account.run.id, self.hook_input)
        try:
            await attachments.attach(self.session, account, self.deadline, self.hook_input.transcript)
        except BadInputError:
            # The transcript may not be followed. Attach the session without it: its run is then stale, with the reason.
            await attachments.attach(self.session, account, self.deadline)
            if self.hook_input.transcript is not None:
                with suppress(BadInputError), anyio.CancelScope(deadline=self.deadline):
                    await self.service.totals.transcripts.name(
                        self.session, self.hook_input.transcript, even_if_refused=True
                    )

    def prepare_launches(self, account: RunAccount) -> None:
        """Have the run's budget files parsed before a launch needs them, which has little time."""
        self.service.settings.prepare_review_budget(account.run.project_dir)

    def _last_attachment(self) -> Attachment | None:
        known = self.service.accounts.sessions.get(self.session)
        return known.current[-1] if known is not None and known.current else None


def _is_binding(account: RunAccount) -> bool:
    return account.run.status == "active" and account.run.enforcement == "hard"


def merged_hints(hints: wire.Hints, hook_input: HookInput) -> wire.Hints:
    """Return the environment's hints, preceded by the session and the directory that the input names."""
    sessions = tuple(dict.fromkeys(name for name in (hook_input.session, *hints.sessions) if name is not None))
    return msgspec.structs.replace(hints, sessions=sessions, cwd=hook_input.cwd or hints.cwd)
