"""What hooks' answers say about the choice of the run, besides what their handlers say."""

import msgspec

from fluxbudgetd.errors import AmbiguousRunError
from fluxbudgetd.policy import run_words
from fluxbudgetd.server.handlers.hook_answers import HookAnswer, as_json
from fluxbudgetd.server.handlers.hook_call import HookCall
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.wire import messages as wire

# After Stop and SubagentStop, context would cause another request to the model.
_WITH_CONTEXT = ("SessionStart", "UserPromptSubmit", "PostToolBatch")
_WITH_NOTE = (*_WITH_CONTEXT, "PreToolUse")


def with_note(call: HookCall, answer: HookAnswer) -> HookAnswer:
    """Return the answer with a note for the session about its run, if there is one."""
    note = _note(call) if call.hook_input.event in _WITH_NOTE and call.hook_input.agent_id is None else None
    if note is None:
        return answer
    if isinstance(answer, TrackedAnswer):
        return answer._replace(answer=_added(call, answer.answer, note))
    return _added(call, answer, note)


def _note(call: HookCall) -> run_words.Note | None:
    shown = call.context.shown
    if call.tied is not None:
        return run_words.applies(call.tied.account.run.id, call.tied.tied, call.session)
    missing, is_start = call.missing, call.hook_input.event == "SessionStart"
    if isinstance(missing, AmbiguousRunError):
        is_news = shown.is_first((call.session, missing.runs))
        return run_words.undecided(missing.directory, missing.runs, call.session) if is_start or is_news else None
    if missing is not None and is_start and shown.is_first(call.session):
        return run_words.without_run(missing.message)
    return None


def _added(call: HookCall, answer: wire.HookAnswer, note: run_words.Note) -> wire.HookAnswer:
    output = msgspec.json.decode(answer.output, type=dict[str, object]) if answer.output else {}
    output["systemMessage"] = _joined(output.get("systemMessage"), note.person)
    if call.hook_input.event in _WITH_CONTEXT:
        specific = output.get("hookSpecificOutput")
        if not isinstance(specific, dict):
            specific = {"hookEventName": call.hook_input.event}
        specific["additionalContext"] = _joined(specific.get("additionalContext"), note.model)
        output["hookSpecificOutput"] = specific
    return msgspec.structs.replace(answer, output=as_json(output))


def _joined(said: object, more: str) -> str:
    return f"{said}. {more}" if isinstance(said, str) and said else more
