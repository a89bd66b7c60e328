"""Which sub-agents of a watched session have usage. Admission watches the sessions that have reservations."""

from collections.abc import Iterable

from fluxbudgetd.model import Copy, Instance, Usage
from fluxbudgetd.sources.transcripts import MAIN, agent_id
from fluxbudgetd.totals.transcript_store import TranscriptStore


class Instances:
    """The sub-agents of watched sessions that have a row, and those whose transcripts hold usage."""

    def __init__(self, transcripts: TranscriptStore) -> None:
        self._transcripts = transcripts
        self._rows: dict[str, tuple[Instance, ...]] = {}
        # When each of a session's files had its first response, by the file's number.
        self._first: dict[str, dict[int, int | None]] = {}

    @property
    def watched(self) -> set[str]:
        """The watched sessions."""
        return {*self._rows, *self._first}

    async def watch(self, session: str) -> None:
        """Keep track of which sub-agents of a session have usage.

        Raises `LedgerError` if the usage in its transcripts so far cannot be read from the ledger; call again to retry.
        Until that succeeds, its transcripts count as holding no usage.
        """
        self._rows.setdefault(session, ())
        if session not in self._first:
            first, copies = await self._transcripts.first_copies(session)
            _note_first(first, copies)
            self._first[session] = first

    def unwatch(self, session: str) -> None:
        """Stop watching a session."""
        self._rows.pop(session, None)
        self._first.pop(session, None)

    def note_rows(self, session: str, records: Iterable[Usage]) -> None:
        """Replace what a session's rows show, if it is watched."""
        if session in self._rows:
            self._rows[session] = tuple(
                Instance(session, record.agent, None, record.at)
                for record in records
                if record.at is not None and record.agent != MAIN
            )

    def note_copies(self, session: str, copies: Iterable[Copy]) -> None:
        """Add what was read of a session's transcripts, if it is watched."""
        if session in self._first:
            _note_first(self._first[session], copies)

    def from_rows(self, session: str) -> tuple[Instance, ...]:
        """Return the sub-agents that have a row. They have ended, even if they are not measured yet."""
        return self._rows.get(session, ())

    def from_transcripts(self, session: str) -> tuple[Instance, ...]:
        """Return the sub-agents whose transcripts hold usage."""
        first = self._first.get(session, {})
        return tuple(
            Instance(session, file.agent, agent_id(file.path), first[file.number])
            for file in self._transcripts.files.get(session, ())
            if file.number in first and file.agent != MAIN and first[file.number] is not None
        )


def _note_first(first: dict[int, int | None], copies: Iterable[Copy]) -> None:
    for copy in copies:
        known = first.get(copy.file)
        if copy.size and copy.at is not None and (known is None or copy.at < known):
            first[copy.file] = copy.at
