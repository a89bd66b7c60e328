"""Which session comes after which: `/clear` ends a session and begins a new one, with no reference to the old."""

import os
import time
from typing import NamedTuple

from fluxbudgetd.server.handlers.hook_input import HookInput

# The new session begins within moments, or with the next prompt if its start has no hook.
_SECONDS = 3600.0
_MOST = 1000


class _End(NamedTuple):
    session: str
    at: float


class ClearedSessions:
    """The session that `/clear` ended last in each directory of transcripts."""

    def __init__(self) -> None:
        self._ends: dict[str, _End] = {}

    def note_end(self, session: str, hook_input: HookInput) -> None:
        """Record the end of a session if it was cleared."""
        if hook_input.reason == "clear" and hook_input.transcript is not None:
            if len(self._ends) >= _MOST:
                self._ends.clear()
            self._ends[os.path.dirname(hook_input.transcript)] = _End(session, time.monotonic())

    def before(self, hook_input: HookInput) -> str | None:
        """Return the cleared session that a new session continues; None if none is known. Each is returned once."""
        if hook_input.source not in (None, "clear") or hook_input.transcript is None:
            return None
        end = self._ends.pop(os.path.dirname(hook_input.transcript), None)
        return None if end is None or time.monotonic() - end.at > _SECONDS else end.session
