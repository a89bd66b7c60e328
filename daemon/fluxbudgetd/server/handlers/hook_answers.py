"""Answers to hooks: JSON in Claude Code's format, and the next warning of a session."""

import msgspec

from fluxbudgetd.clock import now_micros
from fluxbudgetd.policy import limits, loosening, words
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import stops

HookAnswer = wire.HookAnswer | TrackedAnswer[wire.HookAnswer]


async def refreshed(call: HookCall, account: RunAccount) -> Standing:
    """Return the run's standing, by current settings and numbers if they are available in time."""
    await call.service.settings.refresh(call.deadline)
    return await call.service.totals.standing(account, call.deadline)


def stop_cause(standing: Standing) -> str | None:
    """Return what stops the run, without saying how to go on; None if it may go on."""
    run, balance = standing.run, standing.balance
    most = limits.limit(run)
    if most is None or not limits.is_stopped(run, balance, now_micros()):
        return None
    return stops.exhausted(run.id, balance.spent, most, run.cost_basis)


async def with_warning(call: HookCall, account: RunAccount, standing: Standing | None = None) -> HookAnswer:
    """Return an answer with the next warning for the session or its sub-agent, if there is one."""
    service = call.service
    standing = standing or await refreshed(call, account)
    await service.thresholds.reported(account, call.deadline)
    reminder = await service.session_warnings.next_for(account, call.session, call.hook_input.agent_id, call.deadline)
    if reminder is None:
        return wire.HookAnswer()
    output: dict[str, object] = {}
    shown = [loosening.line(standing.run, event) for event in reminder.loosened]
    if reminder.event is not None:
        warning = words.reminder(standing.run, standing.balance, reminder.event)
        output = stops.context(call.hook_input.event or "", warning, None)
        shown.append(warning)
    if reminder.is_for_person:
        output["systemMessage"] = " | ".join(shown)
    return TrackedAnswer(answer(output), reminder.finish)


async def with_start(call: HookCall, account: RunAccount) -> HookAnswer:
    """Return what a sub-agent that starts must know: that its run is stopped, or a warning."""
    standing = await refreshed(call, account)
    cause = stop_cause(standing)
    # Claude Code does not let a hook stop a sub-agent at its start.
    return (
        await with_warning(call, account, standing) if cause is None else answer(stops.finish("SubagentStart", cause))
    )


def answer(output: dict[str, object]) -> wire.HookAnswer:
    """Return the answer with this output."""
    return wire.HookAnswer(output=as_json(output))


def as_json(value: object) -> str:
    """Return a hook's output as JSON."""
    return msgspec.json.encode(value).decode()
