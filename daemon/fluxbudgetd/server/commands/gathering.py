"""The stdin of a command, which arrives in pieces and may never end.

Claude Code does not always close a hook's stdin, so a JSON object is complete when it can be parsed. Parsing is tried
only after a `}`, and only for a limited number of bytes in all, because the pieces may be tiny. If there is more input
than a client forwards, its beginning is used, even if stdin stays open.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio
import anyio.to_thread

from fluxbudgetd.errors import BadRequestError
from fluxbudgetd.server.handlers.hook_input import is_json, parse
from fluxbudgetd.server.requests import Handled, MoreInput
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.framing import MAX_STDIN

# The limit for all attempts to parse one command's stdin, in bytes; a shorter attempt counts as `_SHORTEST`.
_MOST_PARSED = 16 * MAX_STDIN
_SHORTEST = 16 << 10
_MAX_WAIT_SECONDS = 20.0
# The client forwards no more than `MAX_STDIN`. It has this share of its time limit to read and discard the rest: a
# writer whose output is not read may fail.
_FULL_SHARE = 0.5


class Patience(NamedTuple):
    """How long a command waits for its stdin, as shares of its client's time limit."""

    empty: float
    """If nothing has arrived."""
    begun: float
    """If something has arrived."""


class Input(NamedTuple):
    """What has arrived on stdin. `is_whole` is False for the beginning of a longer input."""

    data: bytes
    is_whole: bool
    has_ended: bool
    """False if the deadline came first."""
    wait_ms: int
    """What is left of the client's time limit."""


Result = Handled | Awaitable[Handled]


class Gathering:
    """Gathers a command's stdin, then calls `finish` with it."""

    def __init__(self, wait_ms: int, patience: Patience, finish: Callable[[Input], Result]) -> None:
        self._wait_ms = wait_ms
        self._patience = patience
        self._finish = finish
        self._begun_at = anyio.current_time()
        self._data = bytearray()
        self._is_whole = True
        self._parsed = 0

    def add(self, part: wire.Command | wire.Stdin | None) -> Result:
        """Add a part of stdin (None: the deadline has passed); return the command's answer, or `MoreInput`.

        Raises `BadRequestError` if there is too much.
        """
        if part is None:
            self._is_whole = self._is_whole and not self._is_full
            return self._end(has_ended=self._is_full)
        self._data += part.stdin
        self._is_whole = self._is_whole and not part.cut
        if len(self._data) > MAX_STDIN:
            raise BadRequestError(f"more than {MAX_STDIN} bytes of stdin were sent", "send its beginning, with cut")
        if not part.more:
            return self._end(has_ended=True)
        if not part.stdin.rstrip().endswith(b"}") or self._parsed > _MOST_PARSED:
            return self._more()
        self._parsed += max(len(self._data), _SHORTEST)
        raw = bytes(self._data)
        return self._end(has_ended=True) if parse(raw) is not None else self._after_slow_parsing(raw)

    async def _after_slow_parsing(self, raw: bytes) -> Handled:
        if not await anyio.to_thread.run_sync(is_json, raw, abandon_on_cancel=True):
            return self._more()
        result = self._end(has_ended=True)
        return await result if isinstance(result, Awaitable) else result

    @property
    def _is_full(self) -> bool:
        return len(self._data) == MAX_STDIN

    def _more(self) -> MoreInput:
        share = _FULL_SHARE if self._is_full else self._patience.begun if self._data else self._patience.empty
        wait = min(self._wait_ms / 1000 * share, _MAX_WAIT_SECONDS)
        return MoreInput(self._begun_at + wait, len(self._data), self.add)

    def _end(self, *, has_ended: bool) -> Result:
        waited_ms = int((anyio.current_time() - self._begun_at) * 1000)
        left_ms = max(self._wait_ms - waited_ms, 0)
        return self._finish(Input(bytes(self._data), self._is_whole, has_ended, left_ms))
