"""Hooks of a session's turns: the prompt, and each batch of tool calls."""

from fluxbudgetd.server.handlers.hook_answers import HookAnswer, with_warning
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.wire import messages as wire


async def turn(call: HookCall) -> HookAnswer:
    """Deliver a warning that the session has not seen yet."""
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    call.prepare_launches(account)
    return await with_warning(call, account)
