"""Hooks of sub-agents: launch, start and stop."""

from fluxbudgetd.decisions.admission import GENERAL
from fluxbudgetd.policy.admission import Admission, asks_person
from fluxbudgetd.server.handlers import hook_events
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, as_json, with_start
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import stops


async def launch(call: HookCall) -> HookAnswer:
    """Admit a sub-agent, or refuse it."""
    service = call.service
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    agent = call.hook_input.subagent_type or GENERAL
    await service.totals.standing(account, call.deadline)
    expected = await service.reviews.expected(agent, account.run, call.deadline)
    has_person = call.request.attended and asks_person(call.hook_input.permission_mode)
    admission, reserved = await service.admission.admit(
        account, call.session, agent, expected, call.hook_input.call, has_person=has_person
    )
    if admission.decision == "deny":
        await hook_events.denied(call, account, agent, expected)
    answer = wire.HookAnswer(output=_output(admission))
    if reserved is None:
        return answer
    # If the hook has given up, its session does not know of the admission.
    return TrackedAnswer(
        answer, lambda is_delivered: None if is_delivered else service.admission.withdraw(call.session, reserved)
    )


def _output(admission: Admission) -> str:
    if admission.decision == "allow":
        return ""
    if admission.decision == "warn":
        return as_json(stops.context("PreToolUse", f"fluxbudget: {admission.reason}", admission.message))
    return as_json(stops.permission(admission.decision, admission.reason, admission.message))


async def start(call: HookCall) -> HookAnswer:
    """Record which admitted sub-agent has started; deliver a warning."""
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    agent = call.hook_input.agent_type or ""
    expected = await call.service.reviews.expected(agent or GENERAL, account.run, call.deadline)
    await call.service.admission.start(account, call.session, agent, call.hook_input.agent_id, expected)
    return await with_start(call, account)


async def stop(call: HookCall) -> HookAnswer:
    """Release what is reserved for the sub-agent."""
    await call.service.admission.stop(call.session, call.hook_input.agent_type or "", call.hook_input.agent_id)
    call.service.totals.request_refresh(call.session)
    return wire.HookAnswer()
