"""What a hook answers if the daemon does not, and a hard limit stops the session's run.

The daemon leaves a marker and the state files of each such run when it stops or is killed. Without a marker, no state
file is read.
"""

import json
import os
from collections.abc import Callable
from functools import partial

from fluxbudgetctl import state_file
from fluxbudgetctl.environment import text
from fluxbudgetctl.markers import marked_sockets
from fluxbudgetd.wire import stops
from fluxbudgetd.wire.json_start import top_level
from fluxbudgetd.wire.state_names import RUNS, SESSIONS
from fluxbudgetd.wire.text import fold, one_line

_NOTIFICATION = f'"{stops.NOTIFICATION}'


class HookInput:
    """What Claude Code passes to a hook, as far as it has been read."""

    def __init__(self, data: bytes) -> None:
        self._fields = dict(top_level(data))
        self.event = self._text("hook_event_name")
        self.session = self._text("session_id")
        self.tool = self._text("tool_name")
        self.agent_id = self._text("agent_id")
        self.is_notification = self._fields.get("prompt", "").startswith(_NOTIFICATION)

    @property
    def is_launch(self) -> bool:
        """Return True if a tool is about to launch or wake a sub-agent."""
        return self.event == "PreToolUse" and self.tool in stops.LAUNCH_TOOLS

    def _text(self, name: str) -> str | None:
        try:
            value = json.loads(self._fields.get(name, "null"))
            return fold(value.encode()) if value and isinstance(value, str) else None
        except (ValueError, RecursionError):  # also for half of a surrogate pair, which cannot be encoded
            return None


def answer(hook_input: HookInput, why: str) -> dict[str, object] | None:
    """Return the answer that stops the session, as the daemon would; None if it may go on.

    `why` says why the daemon gave no answer.
    """
    stop = _stop(hook_input)
    state = None if stop is None else _state(hook_input.session)
    if stop is None or state is None or not state.is_stopped:
        return None
    spend = state.spend
    cause = stops.exhausted(state.run, spend.spent, max(spend.budget or 0, state.allowed_to), state.cost_basis)
    return stop(cause, stops.without_daemon(state.run, one_line(why)))


def _stop(hook_input: HookInput) -> Callable[[str, str], dict[str, object]] | None:
    """Return what stops a session at this event; None if the event is not one that is stopped."""
    if hook_input.event == "UserPromptSubmit" and not hook_input.is_notification:
        return partial(stops.blocked_prompt, is_attended=_is_attended())
    if hook_input.event == "PostToolBatch" and hook_input.agent_id is None:
        return stops.ended_turn
    return stops.denied_launch if hook_input.is_launch else None


def _is_attended() -> bool:
    attended, entrypoint = map(os.environ.get, ("CLAUDE_CODE_SESSION_ATTENDED", "CLAUDE_CODE_ENTRYPOINT"))
    return stops.is_attended(attended, entrypoint)


def _state(session: str | None) -> state_file.State | None:
    """Return the last known state of the session's run: a new session's is the run that the environment names."""
    run = os.environ.get("FLUXBUDGET_RUN")
    for kind, name in ((SESSIONS, session), (RUNS, None if run is None else text(run))):
        found = [state_file.last_known(socket, kind, name) for socket in marked_sockets()] if name else []
        states = [state for _, state in found if state is not None]
        # If a session's link leads nowhere, its run is not stopped.
        if states or any(exists for exists, _ in found):
            return states[0] if states else None
    return None
