"""Hooks of a session's turns: the prompt, each batch of tool calls, and the end.

While a hard limit stops the run, prompts are blocked and the main session's turn is ended at its next batch of tool
calls. Its sub-agents may finish, up to their ceilings.
"""

from fluxbudgetd.policy import words
from fluxbudgetd.server.handlers import hook_events
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, answer, refreshed, stop_cause, with_warning
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import stops
from fluxbudgetd.wire.text import one_line


async def prompt(call: HookCall) -> HookAnswer:
    """Block the prompt if the run is stopped; otherwise deliver a warning that the session has not seen yet."""
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    call.prepare_launches(account)
    standing = await refreshed(call, account)
    cause = None if call.hook_input.is_notification else stop_cause(standing)
    if cause is None:
        return await with_warning(call, account, standing)
    await hook_events.stopped(call, standing)
    advice = stops.to_continue(standing.run.id)
    return answer(stops.blocked_prompt(cause, advice, is_attended=call.request.attended))


async def batch(call: HookCall) -> HookAnswer:
    """End the turn of a stopped run, or a sub-agent beyond its ceiling; otherwise deliver a warning."""
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    call.prepare_launches(account)
    standing = await refreshed(call, account)
    if call.hook_input.agent_id is not None:
        return await _subagent_batch(call, account, standing, call.hook_input.agent_id)
    cause = stop_cause(standing)
    if cause is None:
        return await with_warning(call, account, standing)
    await hook_events.stopped(call, standing)
    return answer(stops.ended_turn(cause, stops.to_continue(standing.run.id)))


async def end(call: HookCall) -> HookAnswer:
    """Bring the run up to date after the end of a turn."""
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()


async def failed(call: HookCall) -> HookAnswer:
    """Record that an error has ended the turn."""
    account = await call.join_run()
    if account is not None:
        await hook_events.failed(call, account)
    return wire.HookAnswer()


async def _subagent_batch(call: HookCall, account: RunAccount, standing: Standing, agent_id: str) -> HookAnswer:
    run, ceilings = standing.run, call.service.ceilings
    excess = ceilings.excess(run, call.session, agent_id)
    if excess is None:
        return await with_warning(call, account, standing)
    name, used = one_line(call.hook_input.agent_type or agent_id), words.excess(run, excess)
    if run.enforcement == "hard":
        await hook_events.stopped(call, standing)
        return answer(stops.ended_subagent(name, run.id, f"it has {used}"))
    told = ceilings.tell(call.session, agent_id)
    if told is None:
        return await with_warning(call, account, standing)
    message = f"fluxbudget: the sub-agent {name} of run {run.id} was told to finish: it has {used}"
    return TrackedAnswer(answer(stops.finish("PostToolBatch", f"you have {used}", message)), told)
