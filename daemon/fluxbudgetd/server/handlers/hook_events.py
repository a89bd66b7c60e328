"""Events that hooks record: what a limit has stopped or denied, and turns that have failed."""

import re

import anyio

from fluxbudgetd.model import EventData, EventKind
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.account import RunAccount

# A late answer stops nothing, so it does not wait longer for the ledger. The event is written in any case.
_WRITE_SECONDS = 0.05
# Of an error, only its kind is kept, never a message.
_ERROR_KIND = re.compile(r"[A-Za-z0-9_.-]{1,64}")


async def stopped(call: HookCall, standing: Standing) -> None:
    """Record that a prompt, a turn or a sub-agent is stopped."""
    run, balance = standing.run, standing.balance
    data: EventData = {
        "session": call.session,
        "agent": call.hook_input.agent_id,
        "event": call.hook_input.event,
        "phase": run.phase,
        "spent": balance.spent,
        "budget": balance.budget,
    }
    await _record(call, "turn.stopped", run.id, data)


async def denied(call: HookCall, account: RunAccount, agent: str | None, estimate: int | None) -> None:
    """Record that the launch of a sub-agent is denied. `agent` is its type, None if it is not known."""
    run, balance = account.run, account.balance()
    data: EventData = {
        "session": call.session,
        "tool": call.hook_input.tool,
        "agent": agent,
        "estimate": estimate,
        "phase": run.phase,
        "spent": balance.spent,
        "budget": balance.budget,
        "remaining": balance.remaining,
    }
    await _record(call, "launch.denied", run.id, data)


async def failed(call: HookCall, account: RunAccount) -> None:
    """Record that an error has ended a turn of the session or of a sub-agent."""
    error = call.hook_input.error or ""
    data: EventData = {
        "session": call.session,
        "agent": call.hook_input.agent_id,
        "error": error if _ERROR_KIND.fullmatch(error) else "unknown",
    }
    await _record(call, "turn.failed", account.run.id, data)


async def _record(call: HookCall, kind: EventKind, run: str, data: EventData) -> None:
    deadline = min(call.deadline, anyio.current_time() + _WRITE_SECONDS)
    await call.service.refusals.record(kind, run, data, call.pid, deadline)
