"""Claude Code's hooks: what each event does, and what it is answered.

A hook is answered at once or not at all: whatever goes wrong here is an error answer, on which the client stays silent.
"""

from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import msgspec

from fluxbudgetd.decisions.admission import GENERAL
from fluxbudgetd.errors import BadInputError, NoRunError
from fluxbudgetd.model import Attachment
from fluxbudgetd.policy import statusline as line_policy
from fluxbudgetd.policy import words
from fluxbudgetd.server.answers import Heard
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.server.handlers.hook_input import HookInput, parse, parse_beginning, parse_odd
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire import messages as wire

#: The tools that launch sub-agents (the second is the older name).
_LAUNCHING = ("Agent", "Task")
#: Sessions that begin so go by the environment again; others are where they were.
_BEGINNING = ("startup", "resume")


class _Call(msgspec.Struct, frozen=True):
    """One call of a hook. `hints` say which run is meant when the request names none."""

    context: Context
    request: wire.Hook
    given: HookInput
    session: str
    deadline: float

    @property
    def hints(self) -> wire.Hints:
        return _hints(self.request.hints, self.given)


def hook(context: Context, request: wire.Hook) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer | Heard]:
    """Answer a hook; an event that nothing is done for is answered without waiting."""
    given = parse(request.input) if request.whole else None
    return _odd_hook(context, request) if given is None else _handled(context, request, given)


async def _odd_hook(context: Context, request: wire.Hook) -> wire.AnyAnswer | Heard:
    parser = parse_odd if request.whole else parse_beginning
    given = await anyio.to_thread.run_sync(parser, request.input, abandon_on_cancel=True)
    answer = _handled(context, request, given)
    return await answer if isinstance(answer, Awaitable) else answer


def _handled(
    context: Context, request: wire.Hook, given: HookInput
) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer | Heard]:
    carry_out = _EVENTS.get(given.event or "")
    idle = given.event == "PreToolUse" and given.tool not in _LAUNCHING
    if carry_out is None or given.session is None or idle:
        return wire.HookAnswer()
    return carry_out(_Call(context, request, given, given.session, deadline_of(request)))


async def _session_start(call: _Call) -> wire.HookAnswer:
    """Register the session, and say where its run stands."""
    state = await _run(call)
    if state is None:
        return wire.HookAnswer()
    await _attach(call, state)
    standing = await call.context.service.totals.standing(state, call.deadline)
    said = {"hookEventName": call.given.event, "additionalContext": _where(standing)}
    return wire.HookAnswer(
        output=_json({"hookSpecificOutput": said}), exports=f"export FLUXBUDGET_RUN={standing.run.id}\n"
    )


async def _turn(call: _Call) -> wire.HookAnswer | Heard:
    """Tell the session of a warning that it does not know yet."""
    state = await _joined_run(call)
    return wire.HookAnswer() if state is None else await _warned(call, state)


async def _subagent_start(call: _Call) -> wire.HookAnswer | Heard:
    """Note which admitted sub-agent has started; tell of a warning."""
    service = call.context.service
    state = await _joined_run(call)
    if state is None:
        return wire.HookAnswer()
    agent = call.given.agent_type or ""
    expected = await service.reviews.expected(agent or GENERAL, state.run, call.deadline)
    await service.admission.start(state, call.session, agent, call.given.agent_id, expected)
    return await _warned(call, state)


async def _subagent_stop(call: _Call) -> wire.HookAnswer:
    """Release what was reserved for the sub-agent."""
    service = call.context.service
    await service.admission.stop(call.session, call.given.agent_type or "", call.given.agent_id)
    service.totals.request_refresh(call.session)
    return wire.HookAnswer()


async def _session_end(call: _Call) -> wire.HookAnswer:
    """Release whatever was reserved for the session."""
    service = call.context.service
    await service.admission.end(call.session)
    service.totals.request_refresh(call.session)
    return wire.HookAnswer()


async def _launch(call: _Call) -> wire.HookAnswer | Heard:
    """Admit a sub-agent, or not."""
    service = call.context.service
    state = await _joined_run(call)
    if state is None:
        return wire.HookAnswer()
    agent = call.given.subagent_type or GENERAL
    await service.totals.standing(state, call.deadline)
    expected = await service.reviews.expected(agent, state.run, call.deadline)
    admission, reserved = await service.admission.admit(state, call.session, agent, expected, call.given.call)
    if reserved is not None:
        # A hook that has given up has heard of no admission.
        return Heard(
            wire.HookAnswer(),
            lambda taken: None if taken else service.admission.take_back(call.session, reserved),
        )
    if admission.decision == "allow":
        return wire.HookAnswer()
    return wire.HookAnswer(
        output=_json(
            {
                "hookSpecificOutput": {
                    "hookEventName": "PreToolUse",
                    "permissionDecision": admission.decision,
                    "permissionDecisionReason": f"fluxbudget: {admission.reason}",
                }
            }
        )
    )


_EVENTS: dict[str, Callable[[_Call], Awaitable[wire.AnyAnswer | Heard]]] = {
    "SessionStart": _session_start,
    "UserPromptSubmit": _turn,
    "PostToolBatch": _turn,
    "SubagentStart": _subagent_start,
    "SubagentStop": _subagent_stop,
    "SessionEnd": _session_end,
    "PreToolUse": _launch,
}


async def statusline(context: Context, request: wire.StatusLine) -> wire.StatusLineAnswer:
    """Answer with the line for Claude Code's status line."""
    service, deadline = context.service, deadline_of(request)
    given = parse(request.input)
    if given is None:
        given = await anyio.to_thread.run_sync(parse_odd, request.input, abandon_on_cancel=True)
    hints = _hints(request.hints, given)
    try:
        state = await service.totals.find(request.run, request.scope, request.session, hints, deadline)
    except NoRunError:
        if hints.cwd == request.hints.cwd:
            raise
        # The JSON's directory may be a symlink; the command's own, where it runs, is resolved.
        hints = msgspec.structs.replace(hints, cwd=request.hints.cwd)
        state = await service.totals.find(request.run, request.scope, request.session, hints, deadline)
    standing = await service.totals.standing(state, deadline)
    line = line_policy.line(
        run=standing.run,
        balance=standing.balance,
        rate=service.totals.burn(state),
        stale=standing.stale_why is not None,
        width=request.width,
        colour=request.colour,
    )
    return wire.StatusLineAnswer(run=standing.run.id, line=line, stale_why=standing.stale_why)


def _hints(hints: wire.Hints, given: HookInput) -> wire.Hints:
    """Return the environment's hints, with what the JSON says of session and directory before them."""
    sessions = tuple(dict.fromkeys(name for name in (given.session, *hints.sessions) if name is not None))
    return msgspec.structs.replace(hints, sessions=sessions, cwd=given.cwd or hints.cwd)


async def _run(call: _Call) -> RunAccount | None:
    """Return the active run that the session works for, or would; None when there is none, or no telling."""
    accounts, request = call.context.service.accounts, call.request
    last = _last_attachment(call)
    if last is not None and not (request.run or request.scope or request.session):
        present = accounts.runs[last.run]
        if last.until is not None:
            return None  # detached by hand
        if present.run.status == "active" and call.given.source not in _BEGINNING:
            return present
    # The JSON's directory may be a symlink; the hook's own, where it runs, is resolved.
    directories = dict.fromkeys((call.hints.cwd, request.hints.cwd))
    # A session that goes on after its run has ended works for the next one of its directory.
    for sessions in (call.hints.sessions, ()):
        for cwd in directories:
            hints = msgspec.structs.replace(call.hints, sessions=sessions, cwd=cwd)
            try:
                state = await call.context.service.totals.find_if_any(
                    request.run, request.scope, request.session, hints, call.deadline
                )
            except NoRunError:
                return None  # several would do, or none goes by the name
            if state is not None and state.run.status == "active":
                return state
    return None


def _last_attachment(call: _Call) -> Attachment | None:
    known = call.context.service.accounts.sessions.get(call.session)
    return known.current[-1] if known is not None and known.current else None


async def _joined_run(call: _Call) -> RunAccount | None:
    """Return the session's run; a session that has none is attached to the one that it is in."""
    state = await _run(call)
    last = _last_attachment(call)
    if state is not None and (last is None or last.run != state.run.id):
        await _attach(call, state)
    return state


async def _attach(call: _Call, state: RunAccount) -> None:
    changes = call.context.service.lifecycle
    try:
        await changes.attach(call.session, state, call.deadline, call.given.transcript)
    except BadInputError:
        # A transcript that lies elsewhere is not followed by its name; the session is attached all the same.
        await changes.attach(call.session, state, call.deadline)


async def _warned(call: _Call, state: RunAccount) -> wire.HookAnswer | Heard:
    service = call.context.service
    await service.settings.refresh(call.deadline)
    standing = await service.totals.standing(state, call.deadline)
    await service.checks.told(state, call.deadline)
    reminder = await service.session_warnings.tell(state, call.session, call.deadline)
    if reminder is None:
        return wire.HookAnswer()
    said = words.reminder(standing.run, standing.balance, reminder.event)
    answer = wire.HookAnswer(
        output=_json(
            {
                "systemMessage": said,
                "hookSpecificOutput": {"hookEventName": call.given.event, "additionalContext": said},
            }
        )
    )
    return Heard(answer, reminder.heard)


def _where(standing: Standing) -> str:
    return words.standing(standing.run, standing.balance, stale=standing.stale_why is not None)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
