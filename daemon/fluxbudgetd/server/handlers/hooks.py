"""Claude Code's hooks: which event is handled where. The answers are in Claude Code's format.

A hook never breaks a session: every failure becomes an error answer, for which the client prints nothing.
"""

from collections.abc import Awaitable, Callable

from fluxbudgetd.clock import now_micros
from fluxbudgetd.server.handlers import hook_agents, hook_launches, hook_sessions, hook_turns
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.server.handlers.hook_answers import HookAnswer
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.handlers.hook_input import HookInput, parse, parsed_slowly
from fluxbudgetd.server.handlers.hook_notes import with_note
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.stops import LAUNCH_TOOLS

#: Events that do not show that the session has had a response.
_WITHOUT_RESPONSE = ("SessionStart", "UserPromptSubmit", "SessionEnd")
#: Events that are reported before their response is in a transcript.
_BEFORE_LINE = ("PreToolUse", "PostToolBatch", "SubagentStop", "Stop", "StopFailure")

_HANDLERS: dict[str, Callable[[HookCall], Awaitable[HookAnswer]]] = {
    "SessionStart": hook_sessions.start,
    "UserPromptSubmit": hook_turns.prompt,
    "PostToolBatch": hook_turns.batch,
    "StopFailure": hook_turns.failed,
    "SubagentStart": hook_agents.start,
    "SubagentStop": hook_agents.stop,
    "Stop": hook_turns.end,
    "SessionEnd": hook_sessions.end,
    "PreToolUse": hook_agents.launch,
}


def hook(context: Context, request: wire.Hook, pid: int) -> HookAnswer | Awaitable[HookAnswer]:
    """Handle a hook. An event that requires no action is answered at once."""
    hook_input = parse(request.input) if request.whole else None
    return _unusual(context, request, pid) if hook_input is None else _handle(context, request, pid, hook_input)


async def _unusual(context: Context, request: wire.Hook, pid: int) -> HookAnswer:
    answer = _handle(context, request, pid, await parsed_slowly(request.input, whole=request.whole))
    return await answer if isinstance(answer, Awaitable) else answer


def _handle(
    context: Context, request: wire.Hook, pid: int, hook_input: HookInput
) -> HookAnswer | Awaitable[HookAnswer]:
    handler = _HANDLERS.get(hook_input.event or "")
    is_other_tool = hook_input.event == "PreToolUse" and hook_input.tool not in LAUNCH_TOOLS
    if handler is None or hook_input.session is None or is_other_tool:
        return wire.HookAnswer()
    if hook_input.event not in _WITHOUT_RESPONSE:
        context.service.accounts.note_active(hook_input.session, now_micros())
    call = HookCall(context, request, pid, hook_input, hook_input.session, deadline_of(request))
    return _answer(handler, call)


async def _answer(handler: Callable[[HookCall], Awaitable[HookAnswer]], call: HookCall) -> HookAnswer:
    if call.is_news:
        await call.learn()
    try:
        await hook_launches.note(call)
        return with_note(call, await handler(call))
    finally:
        if call.hook_input.event in _BEFORE_LINE:
            call.service.totals.request_later_refresh(call.session)
