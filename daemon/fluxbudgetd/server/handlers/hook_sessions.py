"""Hooks of a session's start and end."""

import os
from importlib.util import find_spec

from fluxbudgetd.policy import words
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, as_json
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import shell

# Searched for while the daemon starts, because that blocks.
_CLIENT = find_spec("fluxbudgetctl")
_SHELL_FILE = "" if _CLIENT is None or _CLIENT.origin is None else f"{os.path.dirname(_CLIENT.origin)}/{shell.FILE}"


async def start(call: HookCall) -> HookAnswer:
    """Attach the session to its run, and return the run's balance as context."""
    account = await call.find_run()
    await call.service.settings.refresh(call.deadline)
    if account is None:
        return wire.HookAnswer(exports=_functions(call))
    await call.attach(account)
    call.prepare_launches(account)
    call.service.beads.request(account.run.id)
    standing = await call.service.totals.standing(account, call.deadline)
    context = words.standing(standing.run, standing.balance, stale=standing.stale_why is not None)
    output = {"hookSpecificOutput": {"hookEventName": call.hook_input.event, "additionalContext": context}}
    exports = f"export FLUXBUDGET_RUN={standing.run.id}\n"
    if standing.balance.budget is not None:
        # interflux multiplies this by the percentage that our side-band file leaves, and assumes 500 000 without it.
        exports += f"export INTERSTAT_TOKEN_BUDGET={standing.balance.budget}\n"
    return wire.HookAnswer(output=as_json(output), exports=exports + _functions(call))


def _functions(call: HookCall) -> str:
    """Return the line that loads Clavain's functions in the session's shells; empty unless that is switched on."""
    is_on = call.service.settings.config.clavain.shell and _SHELL_FILE
    return shell.loading_if_there(_SHELL_FILE) if is_on else ""


async def end(call: HookCall) -> HookAnswer:
    """Release everything that is reserved for the session."""
    call.context.origins.note_end(call.session, call.hook_input)
    await call.service.admission.end_session(call.session)
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()
