"""The daemon's own SQLite file: runs, attachments, last measured usage, events."""

from fluxbudgetd.ledger.ledger import EventData, Ledger, UsageChanges
from fluxbudgetd.ledger.opening import moved_aside, open_ledger

__all__ = ["EventData", "Ledger", "UsageChanges", "moved_aside", "open_ledger"]
