"""The daemon's own SQLite file, and the writer, which retries the writes that no request waits for."""

from fluxbudgetd.ledger.database import NewEvent
from fluxbudgetd.ledger.ledger import Ledger
from fluxbudgetd.ledger.opening import moved_aside, open_ledger
from fluxbudgetd.ledger.samples import SubAgentFile
from fluxbudgetd.ledger.transcripts import TranscriptChanges, Wanted
from fluxbudgetd.ledger.usage import UsageChanges
from fluxbudgetd.ledger.writer import Backlog, LedgerWriter

__all__ = [
    "Backlog",
    "Ledger",
    "LedgerWriter",
    "NewEvent",
    "SubAgentFile",
    "TranscriptChanges",
    "UsageChanges",
    "Wanted",
    "moved_aside",
    "open_ledger",
]
