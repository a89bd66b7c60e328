"""Who sent a request: a process inside a session of Claude Code, or not.

A session runs in the nearest ancestor of its hooks that is not a shell or a wrapper. This process is remembered, even
across a restart of the daemon, with its start time, because the kernel reuses process ids. A process that descends from
it is inside the session.

This is a guard rail, not a security boundary: a process can leave its ancestors (see docs/enforcement.md).
"""

from collections.abc import Collection
from itertools import takewhile

import anyio.to_thread

from fluxbudgetd import processes
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Caller, SessionProcess
from fluxbudgetd.processes import Ancestry
from fluxbudgetd.wire.messages import By

#: What may stand between Claude Code and its hook.
_WRAPPERS = frozenset(("sh", "bash", "dash", "zsh", "fish", "env", "timeout"))
#: A process whose parent has ended gets one of these as its parent, and so may everything else of the user.
_ADOPTERS = frozenset(("systemd", "init"))
# Forged hooks must not take any amount of memory.
_MOST_SESSIONS = 256


class Callers:
    """The processes of sessions. A process may run several sessions, for instance after `/clear`."""

    def __init__(self, ledger: Ledger, writer: LedgerWriter) -> None:
        self._stored = ledger.session_processes
        # The sessions by process id and start time, each in the order in which they were registered.
        self._processes: dict[tuple[int, int], dict[str, None]] = {}
        self._sessions: set[str] = set()
        self._unsaved: list[SessionProcess] = []
        self._ended: set[int] = set()
        self._backlog = writer.backlog("processes of sessions", self._write)

    async def load(self) -> None:
        """Read the processes that are still running; raises `LedgerError`."""
        for stored in await self._stored.all():
            self._add(stored)
        await self._forget_ended()

    def is_registered(self, session: str) -> bool:
        """Return True if a process of the session is known."""
        return session in self._sessions

    async def register(self, session: str, hook: int) -> None:
        """Remember the process in which a session runs; `hook` is the process of one of its hooks."""
        self._sessions.add(session)  # even if its process cannot be found: other hooks need not try again
        found = await anyio.to_thread.run_sync(processes.ancestry, hook)
        process = next((each for each in found.processes[1:] if each.comm not in _WRAPPERS), None)
        if process is None or process.pid == 1 or process.comm in _ADOPTERS:
            return
        known = self._processes.get((process.pid, process.started), {})
        if session in known:
            return
        await self._forget_ended()
        added = SessionProcess(process.pid, process.started, session)
        self._add(added)
        self._unsaved.append(added)
        self._backlog.request()

    def before(self, session: str) -> str | None:
        """Return the session that a session's process ran before it; None if none is known."""
        for sessions in self._processes.values():
            if session in sessions:
                earlier = list(takewhile(lambda each: each != session, sessions))
                return earlier[-1] if earlier else None
        return None

    async def look_up(self, pid: int) -> Caller:
        """Return the caller with this process id."""
        found = await anyio.to_thread.run_sync(processes.ancestry, pid)
        sessions = dict.fromkeys(
            session for each in found.processes for session in self._processes.get((each.pid, each.started), ())
        )
        return Caller(_by(pid, found, is_inside=bool(sessions)), tuple(sessions))

    def _add(self, new: SessionProcess) -> None:
        sessions = self._processes.setdefault((new.pid, new.started), {})
        sessions[new.session] = None
        if len(sessions) > _MOST_SESSIONS:
            del sessions[next(iter(sessions))]
        self._sessions.add(new.session)

    async def _forget_ended(self) -> None:
        ended = await anyio.to_thread.run_sync(_ended, list(self._processes))
        for key in ended:
            self._processes.pop(key, None)
        if ended:
            self._sessions = {session for sessions in self._processes.values() for session in sessions}
            self._ended.update(pid for pid, _ in ended)
            self._backlog.request()

    async def _write(self) -> None:
        ended, unsaved = frozenset(self._ended), self._unsaved[:]
        if ended or unsaved:
            await self._stored.replace(ended, unsaved)
            self._ended -= ended
            del self._unsaved[: len(unsaved)]


def _by(pid: int, found: Ancestry, *, is_inside: bool) -> By:
    process = next(iter(found.processes), None)
    comm = "" if process is None else process.comm
    if is_inside:
        return By(kind="session", pid=pid, comm=comm)
    if process is None or not found.is_complete:
        return By(kind="unknown", pid=pid, comm=comm)
    return By(kind="terminal" if process.has_terminal else "service", pid=pid, comm=comm)


def _ended(known: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return those of these processes, by id and start time, that have ended."""
    found = ((pid, started, processes.read(pid)) for pid, started in known)
    return [(pid, started) for pid, started, process in found if process is None or process.started != started]
