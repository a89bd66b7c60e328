"""What hooks say about launches besides their start and stop: their results, and the end of turns."""

from fluxbudgetd.server.handlers.hook_call import HookCall


async def note(call: HookCall) -> None:
    """Record what an event says about the session's launches."""
    match call.hook_input.event:
        case "PostToolBatch":
            await _note_batch(call)
        case "UserPromptSubmit":
            await call.service.admission.end_turn(call.session)
        case "Stop" | "StopFailure":
            await _note_end(call)


async def _note_batch(call: HookCall) -> None:
    """A sub-agent's batch shows that it runs, and a launch in a batch that has not started never will."""
    service, hook_input = call.service, call.hook_input
    account = service.accounts.run_of_session(call.session)
    if account is None:
        return
    if service.admission.is_any_waiting(call.session, hook_input.calls):
        # By now the transcripts show which launch has started which sub-agent.
        await service.totals.standing(account, call.deadline)
        await service.admission.finish_calls(call.session, hook_input.calls)
    agent, agent_id = hook_input.agent_type, hook_input.agent_id
    # Claude Code has sub-agents of its own, which have an id but no type.
    if agent is not None and agent_id is not None and not service.admission.has_sign(call.session, agent_id):
        expected = await service.reviews.expected(agent, call.launch_model, call.session, account.run, call.deadline)
        await service.admission.note_running(account, call.session, agent, agent_id, expected.tokens)


async def _note_end(call: HookCall) -> None:
    hook_input = call.hook_input
    if hook_input.agent_id is not None:
        await call.service.admission.stop(call.session, hook_input.agent_type or "", hook_input.agent_id)
    else:
        await call.service.admission.end_turn(call.session, hook_input.background)
