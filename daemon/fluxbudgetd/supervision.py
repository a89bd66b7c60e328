"""What the service manager is told while the daemon serves: its state in words, and that it is alive.

Looked at are the event loop, which this task runs in, the ledger's thread and the sources' reader. When one of them
hangs, a reader while the loop goes on answering with old numbers, too, no sign of life is sent, and the manager starts
the daemon anew.
"""

import faulthandler
import math

import anyio
import structlog

from fluxbudgetd.service import Service
from fluxbudgetd.systemd import Manager

log = structlog.get_logger()

# Under a storm of changes the words follow this far behind.
_WORDS_SECONDS = 0.2
_RELOAD_SECONDS = 5.0
# Parts of the time after which the watchdog bites. What has stood still for the first of them is looked at again and
# again: it may go on in time.
_STILL, _LOOK_AGAIN, _NEXT_SIGN = 1 / 4, 1 / 8, 1 / 2
_IN_WORDS = {"unread": "not read yet"}


class Supervision:
    """Speaks to one manager about one service."""

    def __init__(self, manager: Manager, service: Service) -> None:
        self._manager = manager
        self._service = service
        self._said = ""
        self._still: str | None = None

    async def ready(self) -> None:
        """Tell that requests are answered."""
        self._said = words(self._service)
        await self._manager.ready(self._said)

    async def serve(self) -> None:
        """Tell of changes, and send signs of life as often as the watchdog wants them, until cancelled."""
        if self._manager.address is None:
            return
        due = anyio.current_time() if self._manager.watchdog is not None else math.inf
        while True:
            if anyio.current_time() >= due:
                due = await self._live()
            stirred = self._service.status_changed
            if words(self._service) != self._said:
                self._said = words(self._service)
                await self._manager.status(self._said)
                await anyio.sleep(_WORDS_SECONDS)
            with anyio.CancelScope(deadline=due):
                await stirred.wait()

    async def reload(self) -> None:
        """Read the configuration again, open the sources anew and try failing channels; tell when that is done.

        Files that do not answer are not waited for any longer than a moment.
        """
        await self._manager.reloading()
        is_read = False
        with anyio.move_on_after(_RELOAD_SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._service.reopen_sources)
                while not is_read:
                    is_read = await self._service.settings.refresh(force=True)
        self._service.retry_channels()
        if not is_read:
            log.error("the configuration was not read again: its files do not answer")
        await self.ready()

    async def stopping(self, connections: int) -> None:
        """Tell that the daemon is about to end."""
        await self._manager.stopping(f"stopping: {counted(connections, 'connection')} to be ended")

    async def _live(self) -> float:
        """Send a sign of life if there is life; returns when to look again (in the loop's time)."""
        bites_after = self._manager.watchdog or math.inf
        still = await self._service.stalled(bites_after * _STILL)
        if still is None:
            await self._manager.alive()
        elif still != self._still:
            log.error("no sign of life is sent to the watchdog", stands_still=still, for_seconds=bites_after * _STILL)
            # What each thread is doing: nobody can look any more when the watchdog has bitten.
            faulthandler.dump_traceback(2)
        self._still = still
        return anyio.current_time() + bites_after * (_NEXT_SIGN if still is None else _LOOK_AGAIN)


def words(service: Service) -> str:
    """Return what the daemon is doing, in one line for people."""
    runs = counted(len(service.accounts.active()), "active run")
    sources = (
        f"{status.name} {_IN_WORDS.get(status.state, status.state)}"
        for status, _since, _anomalies in service.totals.sources
    )
    return f"{runs}; {', '.join(sources)}"


def counted(number: int, thing: str) -> str:
    """Return a number of things: `1 run`, `2 runs`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
