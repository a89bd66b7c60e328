"""The daemon's own SQLite file: runs, their phases, attachments, last measured usage, triages, events."""

from fluxbudgetd.ledger.ledger import Ledger, NewEvent, TranscriptChanges, UsageChanges
from fluxbudgetd.ledger.opening import moved_aside, open_ledger

__all__ = ["Ledger", "NewEvent", "TranscriptChanges", "UsageChanges", "moved_aside", "open_ledger"]
