"""The daemon's own SQLite file: runs, their phases, attachments, last measured usage, triages, events."""

from fluxbudgetd.ledger.ledger import Ledger, NewEvent, TranscriptChanges, UsageChanges
from fluxbudgetd.ledger.opening import moved_aside, open_ledger
from fluxbudgetd.ledger.writer import Backlog, LedgerWriter

__all__ = [
    "Backlog",
    "Ledger",
    "LedgerWriter",
    "NewEvent",
    "TranscriptChanges",
    "UsageChanges",
    "moved_aside",
    "open_ledger",
]
