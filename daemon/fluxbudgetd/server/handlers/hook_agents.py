"""Hooks of sub-agents: launch, start and stop."""

from fluxbudgetd.clock import now_micros
from fluxbudgetd.decisions.admission import Launch
from fluxbudgetd.policy.admission import Admission, asks_person
from fluxbudgetd.policy.estimates import AgentEstimate
from fluxbudgetd.policy.limits import is_stopped
from fluxbudgetd.policy.reservations import GENERAL
from fluxbudgetd.server.handlers import hook_events
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, as_json, with_start
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import stops

#: The tools that start a sub-agent of a type that they name.
_TYPED = ("Agent", "Task")
# What remains to be done after waiting for a line may take this long. An answer that comes too late checks nothing.
_ANSWER_SECONDS = 0.08


async def launch(call: HookCall) -> HookAnswer:
    """Admit a sub-agent, or refuse it."""
    service, hook_input = call.service, call.hook_input
    account = await call.join_run()
    if account is None:
        return wire.HookAnswer()
    resumes = _resumed(call)
    agent = _agent(call, resumes)
    await service.totals.standing(account, call.deadline)
    expected = None
    # How many sub-agents a workflow starts is not known. Each reserves its estimate when it starts. A denial must not
    # wait for the project's budget file.
    if agent is not None and not is_stopped(account.run, account.balance(), now_micros()):
        expected = await service.reviews.expected(agent, call.launch_model, call.session, account.run, call.deadline)
    await _wait_for_line(call, account, expected)
    admission, reserved = await service.admission.admit(
        account,
        call.session,
        Launch(agent or hook_input.tool or GENERAL, hook_input.call, hook_input.agent_id, resumes),
        expected,
        has_person=call.request.attended and asks_person(hook_input.permission_mode),
    )
    if admission.decision == "deny":
        await hook_events.denied(call, account, agent, None if expected is None else expected.tokens)
    answer = wire.HookAnswer(output=_output(admission))
    if reserved is None:
        return answer
    # If the hook has given up, its session does not know of the admission.
    return TrackedAnswer(
        answer, lambda is_delivered: None if is_delivered else service.admission.withdraw(call.session, reserved)
    )


def _resumed(call: HookCall) -> str | None:
    """Return the id of the finished sub-agent that a message resumes; None if the call is another one."""
    to = call.hook_input.to
    return None if to is None or call.service.admission.is_running(call.session, to) else to


def _agent(call: HookCall, resumes: str | None) -> str | None:
    """Return the type of the sub-agent that a tool call starts; None if it starts none, or it is not known which."""
    if call.hook_input.tool in _TYPED:
        return call.hook_input.subagent_type or GENERAL
    return None if resumes is None else call.service.admission.type_of(call.session, resumes)


async def _wait_for_line(call: HookCall, account: RunAccount, expected: AgentEstimate | None) -> None:
    """If the sub-agent fits by what was written so far, count the response that launches it as well."""
    remaining = account.balance().remaining
    if call.hook_input.call is None or account.run.enforcement != "hard" or remaining is None:
        return
    if (1 if expected is None else expected.tokens) <= remaining:
        totals, hook_input = call.service.totals, call.hook_input
        deadline = call.deadline - _ANSWER_SECONDS
        await totals.awaited_lines.call(call.session, hook_input.agent_id, call.hook_input.call, deadline)
        await totals.standing(account, call.deadline)


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
    expected = await call.service.reviews.expected(
        agent or GENERAL, call.launch_model, call.session, account.run, call.deadline
    )
    await call.service.admission.start(account, call.session, agent, call.hook_input.agent_id, expected.tokens)
    return await with_start(call, account)


async def stop(call: HookCall) -> HookAnswer:
    """Count the sub-agent's last response, and release what is reserved for it."""
    service, agent_id = call.service, call.hook_input.agent_id
    account = service.accounts.run_of_session(call.session)
    try:
        if account is not None and agent_id is not None and service.admission.is_running(call.session, agent_id):
            await service.totals.awaited_lines.end(call.session, agent_id, call.deadline - _ANSWER_SECONDS)
            await service.totals.standing(account, call.deadline)
    finally:
        await service.admission.stop(call.session, call.hook_input.agent_type or "", agent_id)
        service.totals.request_refresh(call.session)
    return wire.HookAnswer()
