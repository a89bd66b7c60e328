"""Claude Code's hooks: what each event does, and its answer in Claude Code's format.

A hook never breaks a session: every failure becomes an error answer, for which the client prints nothing.
"""

from collections.abc import Awaitable, Callable

import msgspec

from fluxbudgetd.clock import now_micros
from fluxbudgetd.decisions.admission import GENERAL
from fluxbudgetd.policy import words
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.handlers.hook_input import HookInput, parse, parsed_slowly
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

#: The tools that launch sub-agents (`Task` is the older name).
_LAUNCH_TOOLS = ("Agent", "Task")
#: Events that do not show that the session has had a response.
_WITHOUT_RESPONSE = ("SessionStart", "UserPromptSubmit", "SessionEnd")

HookAnswer = wire.HookAnswer | TrackedAnswer[wire.HookAnswer]


def hook(context: Context, request: wire.Hook) -> HookAnswer | Awaitable[HookAnswer]:
    """Handle a hook. An event that requires no action is answered at once."""
    hook_input = parse(request.input) if request.whole else None
    return _unusual(context, request) if hook_input is None else _handle(context, request, hook_input)


async def _unusual(context: Context, request: wire.Hook) -> HookAnswer:
    answer = _handle(context, request, await parsed_slowly(request.input, whole=request.whole))
    return await answer if isinstance(answer, Awaitable) else answer


def _handle(context: Context, request: wire.Hook, hook_input: HookInput) -> HookAnswer | Awaitable[HookAnswer]:
    handler = _HANDLERS.get(hook_input.event or "")
    is_other_tool = hook_input.event == "PreToolUse" and hook_input.tool not in _LAUNCH_TOOLS
    if handler is None or hook_input.session is None or is_other_tool:
        return wire.HookAnswer()
    if hook_input.event not in _WITHOUT_RESPONSE:
        context.service.accounts.note_active(hook_input.session, now_micros())
    call = HookCall(context, request, hook_input, hook_input.session, deadline_of(request))
    return _after_learning(handler, call) if call.is_news else handler(call)


async def _after_learning(handler: Callable[[HookCall], Awaitable[HookAnswer]], call: HookCall) -> HookAnswer:
    await call.learn()
    return await handler(call)


async def _session_start(call: HookCall) -> HookAnswer:
    """Attach the session to its run, and return the run's balance as context."""
    account = await call.find_run()
    if account is None:
        return wire.HookAnswer()
    await call.attach(account)
    standing = await call.service.totals.standing(account, call.deadline)
    context = words.standing(standing.run, standing.balance, stale=standing.stale_why is not None)
    output = {"hookSpecificOutput": {"hookEventName": call.hook_input.event, "additionalContext": context}}
    return wire.HookAnswer(output=_json(output), exports=f"export FLUXBUDGET_RUN={standing.run.id}\n")


async def _turn(call: HookCall) -> HookAnswer:
    """Deliver a warning that the session has not seen yet."""
    account = await call.join_run()
    return wire.HookAnswer() if account is None else await _with_warning(call, account)


async def _subagent_start(call: HookCall) -> HookAnswer:
    """Record which admitted sub-agent has started; deliver a warning."""
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    agent = call.hook_input.agent_type or ""
    expected = await call.service.reviews.expected(agent or GENERAL, account.run, call.deadline)
    await call.service.admission.start(account, call.session, agent, call.hook_input.agent_id, expected)
    return await _with_warning(call, account)


async def _subagent_stop(call: HookCall) -> HookAnswer:
    """Release what is reserved for the sub-agent."""
    await call.service.admission.stop(call.session, call.hook_input.agent_type or "", call.hook_input.agent_id)
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()


async def _session_end(call: HookCall) -> HookAnswer:
    """Release everything that is reserved for the session."""
    await call.service.admission.end_session(call.session)
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()


async def _launch(call: HookCall) -> HookAnswer:
    """Admit a sub-agent, or refuse it."""
    service = call.service
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    agent = call.hook_input.subagent_type or GENERAL
    await service.totals.standing(account, call.deadline)
    expected = await service.reviews.expected(agent, account.run, call.deadline)
    admission, reserved = await service.admission.admit(account, call.session, agent, expected, call.hook_input.call)
    if reserved is not None:
        # If the hook has given up, its session does not know of the admission.
        return TrackedAnswer(
            wire.HookAnswer(),
            lambda is_delivered: None if is_delivered else service.admission.withdraw(call.session, reserved),
        )
    if admission.decision == "allow":
        return wire.HookAnswer()
    output = {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": admission.decision,
            "permissionDecisionReason": f"fluxbudget: {admission.reason}",
        }
    }
    return wire.HookAnswer(output=_json(output))


_HANDLERS: dict[str, Callable[[HookCall], Awaitable[HookAnswer]]] = {
    "SessionStart": _session_start,
    "UserPromptSubmit": _turn,
    "PostToolBatch": _turn,
    "SubagentStart": _subagent_start,
    "SubagentStop": _subagent_stop,
    "SessionEnd": _session_end,
    "PreToolUse": _launch,
}


async def _with_warning(call: HookCall, account: RunAccount) -> HookAnswer:
    """Return an answer with the session's next warning, if there is one."""
    service = call.service
    await service.settings.refresh(call.deadline)
    standing = await service.totals.standing(account, call.deadline)
    await service.thresholds.reported(account, call.deadline)
    reminder = await service.session_warnings.next_for(account, call.session, call.deadline)
    if reminder is None:
        return wire.HookAnswer()
    warning = words.reminder(standing.run, standing.balance, reminder.event)
    output = {
        "systemMessage": warning,
        "hookSpecificOutput": {"hookEventName": call.hook_input.event, "additionalContext": warning},
    }
    return TrackedAnswer(wire.HookAnswer(output=_json(output)), reminder.finish)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
