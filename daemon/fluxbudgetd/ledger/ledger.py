"""The ledger: the daemon's own SQLite file, one attribute for each kind of thing that is stored."""

from fluxbudgetd.ledger.announced import StoredAnnouncements
from fluxbudgetd.ledger.claude_dirs import StoredClaudeDirectories
from fluxbudgetd.ledger.database import Database
from fluxbudgetd.ledger.deliveries import StoredDeliveries
from fluxbudgetd.ledger.events import StoredEvents
from fluxbudgetd.ledger.reservations import StoredReservations
from fluxbudgetd.ledger.reviews import StoredReviews
from fluxbudgetd.ledger.runs import StoredRuns
from fluxbudgetd.ledger.samples import StoredSamples
from fluxbudgetd.ledger.session_processes import StoredSessionProcesses
from fluxbudgetd.ledger.transcripts import StoredTranscripts
from fluxbudgetd.ledger.usage import StoredUsage


class Ledger:
    """An open ledger. Its methods raise `LedgerError` if the file cannot be read or written."""

    def __init__(self, database: Database) -> None:
        self.path = database.path
        self.runs = StoredRuns(database)
        self.usage = StoredUsage(database)
        self.transcripts = StoredTranscripts(database)
        self.claude_dirs = StoredClaudeDirectories(database)
        self.events = StoredEvents(database)
        self.reviews = StoredReviews(database)
        self.samples = StoredSamples(database)
        self.reservations = StoredReservations(database)
        self.deliveries = StoredDeliveries(database)
        self.announced = StoredAnnouncements(database)
        self.session_processes = StoredSessionProcesses(database)
        self._database = database

    async def check(self) -> None:
        """Raise `LedgerError` if the file was removed or replaced, or cannot be read."""
        self._database.require_file()
        await self.events.last_number()

    async def close(self) -> None:
        """Finish the current transaction and close the file."""
        await self._database.close()
