"""Saving measured usage in the ledger: in memory first, in the ledger soon after, and retried until it is there."""

from fluxbudgetd.ledger import LedgerWriter
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.transcript_store import TranscriptStore

# An answer waits this long for its numbers to be saved. They nearly always are by then, so a kill makes no total fall.
_WAIT_SECONDS = 0.05


class UsageSaver:
    """Has both stores written, as one backlog of the ledger's writer."""

    def __init__(self, rows: RowStore, transcripts: TranscriptStore, writer: LedgerWriter) -> None:
        self._rows = rows
        self._transcripts = transcripts
        self._writer = writer
        self._backlog = writer.backlog("usage", self._save)

    async def save_soon(self) -> None:
        """Have unsaved usage written, and wait for the attempt, but for 50 ms at most."""
        if self._rows.has_unsaved or self._transcripts.has_unsaved:
            await self._backlog.attempt(_WAIT_SECONDS)

    async def _save(self) -> None:
        if self._rows.has_unsaved:
            await self._rows.save()
        if self._transcripts.has_unsaved:
            await self._transcripts.save()
        self._writer.note_readable()
