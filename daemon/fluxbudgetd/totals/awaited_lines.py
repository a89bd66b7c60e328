"""Waiting for the transcript line that is being written while a hook runs."""

import os
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread

from fluxbudgetd.sources.stamps import MISSING, PathStamp, stamp
from fluxbudgetd.sources.transcripts import MAIN, agent_id, tail
from fluxbudgetd.totals.transcript_store import TranscriptStore
from fluxbudgetd.wire.text import unfold

#: A hook waits at most this long for a line. Claude Code usually writes it within 70 ms.
LONGEST_SECONDS = 0.1
_POLL_SECONDS = 0.005


class AwaitedLines:
    """Waits until a transcript shows what a hook reports. Returns at once if there is no such transcript."""

    def __init__(self, transcripts: TranscriptStore) -> None:
        self._transcripts = transcripts
        self._limiter = anyio.CapacityLimiter(1)

    async def call(self, session: str, agent: str | None, call: str, deadline: float) -> None:
        """Wait for the response that makes a tool call; `agent` is the id of the sub-agent that makes it, if any."""
        await self._wait(session, agent, partial(tail.has_call, call=call), deadline)

    async def end(self, session: str, agent: str, deadline: float) -> None:
        """Wait for a sub-agent's last response."""
        await self._wait(session, agent, tail.has_final_message, deadline)

    async def _wait(self, session: str, agent: str | None, is_written: Callable[[str], bool], deadline: float) -> None:
        path = self._path(session, agent)
        if path is None:
            return
        with anyio.CancelScope(deadline=min(deadline, anyio.current_time() + LONGEST_SECONDS)):
            seen: PathStamp = MISSING
            while True:
                now = stamp(path)
                if now != seen and await self._is_written(path, is_written):
                    return
                seen = now
                await anyio.sleep(_POLL_SECONDS)

    async def _is_written(self, path: str, is_written: Callable[[str], bool]) -> bool:
        try:
            return await anyio.to_thread.run_sync(is_written, path, abandon_on_cancel=True, limiter=self._limiter)
        except OSError:
            return False

    def _path(self, session: str, agent: str | None) -> str | None:
        """Return the path of the transcript of a session's main loop or of a sub-agent."""
        for file in reversed(self._transcripts.files.get(session, ())):
            name = None if file.agent == MAIN else agent_id(file.path)
            if name == agent and (file.agent == MAIN) == (agent is None) and not file.is_gone:
                return os.fsdecode(unfold(file.path))
        return None
