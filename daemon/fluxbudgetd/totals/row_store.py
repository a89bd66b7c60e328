"""interstat's rows as they were last measured: in memory until they are saved, then in the ledger."""

from fluxbudgetd.ledger import Ledger, UsageChanges
from fluxbudgetd.model import Usage
from fluxbudgetd.threads import off_loop


class RowStore:
    """The rows of followed sessions. `source` is the name under which the ledger keeps them."""

    def __init__(self, source: str, ledger: Ledger) -> None:
        self.source = source
        self._ledger = ledger
        # Newer than the ledger's rows.
        self._unsaved: dict[str, tuple[Usage, ...]] = {}

    @property
    def has_unsaved(self) -> bool:
        """Return True if rows must be written to the ledger."""
        return bool(self._unsaved)

    def put(self, session: str, records: tuple[Usage, ...]) -> None:
        """Replace a session's rows."""
        self._unsaved[session] = records

    async def usage(self, session: str) -> tuple[Usage, ...]:
        """Return a session's rows; raises `LedgerError`."""
        records = self._unsaved.get(session)
        return await self._ledger.usage.of_session(session, self.source) if records is None else records

    async def sessions_naming(self, scope: str) -> set[str]:
        """Return the sessions with a row that names a scope; raises `LedgerError`."""
        # Before the ledger is asked: the rows may be saved while it answers.
        unsaved = {name for name, records in self._unsaved.items() if any(record.bead == scope for record in records)}
        return unsaved.union(await self._ledger.usage.sessions_naming(scope))

    async def save(self) -> None:
        """Write the unsaved rows to the ledger. On `LedgerError` they stay unsaved."""
        batch = dict(self._unsaved)
        changes = []
        for name, records in batch.items():
            before = await self._ledger.usage.of_session(name, self.source)
            size = len(records) + len(before)
            changes.append((name, await off_loop(size, UsageChanges.between, before, records)))
        await self._ledger.usage.save(self.source, changes)
        for name, records in batch.items():
            if self._unsaved.get(name) is records:
                del self._unsaved[name]
