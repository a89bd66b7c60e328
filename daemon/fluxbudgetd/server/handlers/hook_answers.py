"""Answers to hooks: JSON in Claude Code's format, and the next warning of a session."""

import msgspec

from fluxbudgetd.policy import words
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

HookAnswer = wire.HookAnswer | TrackedAnswer[wire.HookAnswer]


async def with_warning(call: HookCall, account: RunAccount) -> HookAnswer:
    """Return an answer with the next warning for the session or its sub-agent, if there is one."""
    service = call.service
    await service.settings.refresh(call.deadline)
    standing = await service.totals.standing(account, call.deadline)
    await service.thresholds.reported(account, call.deadline)
    reminder = await service.session_warnings.next_for(account, call.session, call.hook_input.agent_id, call.deadline)
    if reminder is None:
        return wire.HookAnswer()
    warning = words.reminder(standing.run, standing.balance, reminder.event)
    output: dict[str, object] = {"systemMessage": warning} if reminder.is_for_person else {}
    output["hookSpecificOutput"] = {"hookEventName": call.hook_input.event, "additionalContext": warning}
    return TrackedAnswer(wire.HookAnswer(output=as_json(output)), reminder.finish)


def as_json(value: object) -> str:
    """Return a hook's output as JSON."""
    return msgspec.json.encode(value).decode()
