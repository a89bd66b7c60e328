"""Saving measured usage: it is in memory first and in the ledger soon after, and a failed write is retried."""

from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.transcript_store import TranscriptStore

# An answer waits this long for its numbers to be saved, which is nearly always enough: then no kill can lower a total.
_WAIT_SECONDS = 0.05


class UsageSaver:
    """Has both stores written, as one backlog of the ledger's writer."""

    def __init__(self, rows: RowStore, transcripts: TranscriptStore, writer: LedgerWriter) -> None:
        self._rows = rows
        self._transcripts = transcripts
        self._writer = writer
        self._backlog = writer.backlog("usage", self._save)

    async def save_soon(self) -> None:
        """Have unsaved usage written, and wait at most 50 ms for the attempt."""
        if self._rows.has_unsaved or self._transcripts.has_unsaved:
            await self._backlog.attempt(_WAIT_SECONDS)

    async def save_all(self, seconds: float) -> bool:
        """Have everything written that was read so far, and wait at most `seconds`. Return True if it is on disk."""
        return await self._backlog.attempt(seconds)

    async def _save(self) -> None:
        if self._rows.has_unsaved:
            await self._rows.save()
        if self._transcripts.has_unsaved:
            await self._transcripts.save()
        self._writer.note_readable()
