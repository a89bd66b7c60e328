"""The daemon's own SQLite file: runs, their phases, attachments, last measured usage, triages, events."""

from fluxbudgetd.ledger.ledger import Ledger, NewEvent, UsageChanges
from fluxbudgetd.ledger.opening import moved_aside, open_ledger

__all__ = ["Ledger", "NewEvent", "UsageChanges", "moved_aside", "open_ledger"]
