"""Which session another one continues: after `/clear`, and as a fork. Claude Code's hooks do not say this.

`/clear` ends a session and begins another in the same process. A fork begins with a copy of a session's history, but
its transcript may be written only after its first hooks. So a session is *open* until one of its hooks finds the
session that it continues, or responses in its transcript. An open session that has joined a run may move to another.
"""

import os
import time
from typing import NamedTuple, TypeVar

import anyio

from fluxbudgetd.errors import LedgerError
from fluxbudgetd.server.handlers.hook_input import HookInput
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount

_T = TypeVar("_T")

#: The `source` of a session that continues no other one.
NEW = "startup"
#: The sources of sessions that `/clear` and `/branch` begin in the process of the session that they continue.
_IN_PROCESS = ("clear", "fork")
# The hook of the new session's start may be missing. Then its first hook comes with the next prompt.
_SECONDS = 3600.0
_MOST = 1000


class _End(NamedTuple):
    session: str
    at: float


class Origins:
    """Finds the sessions that others continue."""

    def __init__(self) -> None:
        # The session that `/clear` ended last in each directory of transcripts.
        self._cleared: dict[str, _End] = {}
        # The runs that open sessions have joined, and the sessions that are no longer open.
        self._joined: dict[str, str] = {}
        self._closed: dict[str, None] = {}

    def note_end(self, session: str, hook_input: HookInput) -> None:
        """Record the end of a session."""
        if hook_input.reason == "clear" and hook_input.transcript is not None:
            _put(self._cleared, os.path.dirname(hook_input.transcript), _End(session, time.monotonic()))

    def note_joined(self, session: str, run: str, hook_input: HookInput) -> None:
        """Record that a hook has attached a session to a run."""
        if hook_input.source == NEW:
            self._close(session)
        elif session not in self._closed:
            _put(self._joined, session, run)

    def is_open(self, session: str, run: str | None) -> bool:
        """Return True if a session may continue another one. `run` is the run that it was attached to last."""
        return session not in self._closed and (run is None or self._joined.get(session) == run)

    async def run_of(
        self, service: Service, session: str, hook_input: HookInput, known: tuple[str, ...], deadline: float
    ) -> RunAccount | None:
        """Return the active run of the session that an open session continues; None if none is found.

        `known` are sessions that the hook's environment names: after `/clear`, it may be that of the old session.
        """
        # A cleared session's process is not known if the daemon cannot see it, for instance in a container.
        cleared = self._cleared_before(hook_input)
        before = service.callers.before(session) if hook_input.source in _IN_PROCESS else None
        names = [name for name in (before or cleared, *known) if name not in (None, session)]
        if hook_input.transcript is not None and service.accounts.has_active():
            transcripts = service.totals.transcripts
            with anyio.CancelScope(deadline=deadline):
                try:
                    copied = await transcripts.copied_from(session, hook_input.transcript)
                except LedgerError:
                    copied = None
                if copied is not None:
                    self._close(session)
                    names.insert(0, copied)
        accounts = (service.accounts.run_of_session(name) for name in names if name)
        found = next((account for account in accounts if account is not None and account.run.status == "active"), None)
        if found is not None:
            self._close(session)
        return found

    def _cleared_before(self, hook_input: HookInput) -> str | None:
        """Return the cleared session that a new session continues; None if none is known. Each is returned once."""
        if hook_input.source not in (*_IN_PROCESS, None) or hook_input.transcript is None:
            return None
        end = self._cleared.pop(os.path.dirname(hook_input.transcript), None)
        return None if end is None or time.monotonic() - end.at > _SECONDS else end.session

    def _close(self, session: str) -> None:
        self._joined.pop(session, None)
        _put(self._closed, session, None)


def _put(table: dict[str, _T], key: str, value: _T) -> None:
    """Set an entry of a table, which forgets its oldest ones."""
    table.pop(key, None)
    if len(table) >= _MOST:
        del table[next(iter(table))]
    table[key] = value
