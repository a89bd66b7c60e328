"""Writing to the ledger in a task of its own: again when it failed, and the last of it when the daemon ends."""

from collections.abc import Awaitable, Callable

import anyio

_PAUSE_SECONDS = 1.0


class LedgerWriter:
    """`save` writes all that there is to write, and tells whether that was possible."""

    def __init__(self, save: Callable[[], Awaitable[bool]]) -> None:
        self._save = save
        self._wanted = anyio.Event()
        self._tried = anyio.Event()

    def want(self) -> None:
        """Have what there is written. Takes no time."""
        self._wanted.set()

    async def tried(self, seconds: float) -> None:
        """Wait until it has been tried once more, but no longer than this."""
        with anyio.move_on_after(seconds):
            await self._tried.wait()

    async def serve(self) -> None:
        """Write what is wanted, until cancelled; then what there is left."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = anyio.Event()
                is_written = await self._save()
                self._tried.set()
                self._tried = anyio.Event()
                if not is_written:
                    self._wanted.set()
                    await anyio.sleep(_PAUSE_SECONDS)
        finally:
            with anyio.move_on_after(_PAUSE_SECONDS, shield=True):
                await self._save()
