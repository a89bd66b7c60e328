"""Hooks of a session's start and end."""

from fluxbudgetd.policy import words
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, as_json
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.wire import messages as wire


async def start(call: HookCall) -> HookAnswer:
    """Attach the session to its run, and return the run's balance as context."""
    account = await call.find_run()
    if account is None:
        return wire.HookAnswer()
    await call.attach(account)
    call.prepare_launches(account)
    call.service.beads.request(account.run.id)
    standing = await call.service.totals.standing(account, call.deadline)
    context = words.standing(standing.run, standing.balance, stale=standing.stale_why is not None)
    output = {"hookSpecificOutput": {"hookEventName": call.hook_input.event, "additionalContext": context}}
    return wire.HookAnswer(output=as_json(output), exports=f"export FLUXBUDGET_RUN={standing.run.id}\n")


async def end(call: HookCall) -> HookAnswer:
    """Release everything that is reserved for the session."""
    call.context.origins.note_end(call.session, call.hook_input)
    await call.service.admission.end_session(call.session)
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()
