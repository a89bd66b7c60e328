"""What the daemon reports to its service manager: its status in words, and that it is alive.

The watchdog is fed while the event loop, the ledger's thread and the sources' reader make progress. If one of them
hangs, even a reader while the loop still answers with old numbers, the manager restarts the daemon.
"""

import faulthandler
import math

import anyio
import structlog

from fluxbudgetd.service import Service
from fluxbudgetd.systemd import Manager

log = structlog.get_logger()

# At most one status message per interval, however fast the status changes.
_STATUS_SECONDS = 0.2
# Shares of the watchdog's time. A part that has made no progress for the first is stalled; then it is checked again
# after the second. Otherwise the watchdog is fed after the third.
_STALLED_SHARE, _RECHECK_SHARE, _FEED_SHARE = 1 / 4, 1 / 8, 1 / 2
_STATE_WORDS = {"unread": "not read yet"}


class Supervision:
    """Reports one service to one manager. A reload gives up on files that do not answer after `reload_seconds`."""

    def __init__(self, manager: Manager, service: Service, reload_seconds: float = 5.0) -> None:
        self._manager = manager
        self._service = service
        self._reload_seconds = reload_seconds
        self._reported = ""
        self._stalled: str | None = None

    async def ready(self) -> None:
        """Report that requests are answered."""
        self._reported = status_line(self._service)
        await self._manager.ready(self._reported)

    async def serve(self) -> None:
        """Report changes, and feed the watchdog as often as it wants, until cancelled."""
        if self._manager.address is None:
            return
        due = anyio.current_time() if self._manager.watchdog is not None else math.inf
        while True:
            if anyio.current_time() >= due:
                due = await self.feed_watchdog()
            changed = self._service.status_changed
            if status_line(self._service) != self._reported:
                self._reported = status_line(self._service)
                await self._manager.status(self._reported)
                await anyio.sleep(_STATUS_SECONDS)
            with anyio.CancelScope(deadline=due):
                await changed.wait()

    async def reload(self) -> None:
        """Read the configuration again, reopen the sources and retry failed channels; report when that is done."""
        await self._manager.reloading()
        is_read = False
        with anyio.move_on_after(self._reload_seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._service.reopen_sources)
                while not is_read:
                    is_read = await self._service.settings.refresh(force=True)
        self._service.retry_channels()
        if not is_read:
            log.error("configuration not reloaded: reading timed out")
        await self.ready()

    async def stopping(self, connections: int) -> None:
        """Report that the daemon is about to stop."""
        await self._manager.stopping(f"stopping: {counted(connections, 'connection')} to close")

    async def feed_watchdog(self) -> float:
        """Report that the daemon is alive, unless a part of it is stalled; return when to check again (loop time)."""
        limit = self._manager.watchdog or math.inf
        stalled = await self._service.stalled(limit * _STALLED_SHARE)
        if stalled is None:
            await self._manager.alive()
        elif stalled != self._stalled:
            log.error("the watchdog is not fed", stalled=stalled, for_seconds=limit * _STALLED_SHARE)
            # Show what each thread is doing now: once the watchdog has fired, it is too late.
            faulthandler.dump_traceback(2)
        self._stalled = stalled
        return anyio.current_time() + limit * (_FEED_SHARE if stalled is None else _RECHECK_SHARE)


def status_line(service: Service) -> str:
    """Return what the daemon is doing, in one line for people."""
    runs = counted(len(service.accounts.active()), "active run")
    sources = (
        f"{source.status.name} {_STATE_WORDS.get(source.status.state, source.status.state)}"
        for source in service.totals.sources
    )
    return f"{runs}; {', '.join(sources)}"


def counted(number: int, thing: str) -> str:
    """Return a number of things: `1 run`, `2 runs`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
