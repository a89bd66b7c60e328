"""Who sent a request, and the processes of sessions."""

from typing import NamedTuple

import msgspec

from fluxbudgetd.wire.messages import By


class Caller(msgspec.Struct, frozen=True):
    """The process that sent a request. `sessions` are those whose processes it descends from."""

    by: By
    sessions: tuple[str, ...] = ()

    @property
    def is_inside(self) -> bool:
        """Return True if the process descends from a session, or may do so."""
        return self.by.kind in ("session", "unknown")


class SessionProcess(NamedTuple):
    """A process in which a session runs, or has run. `started` (clock ticks after boot) tells it from a later one."""

    pid: int
    started: int
    session: str
