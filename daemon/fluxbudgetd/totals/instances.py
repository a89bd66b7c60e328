"""Which sub-agents of a watched session have usage. Admission watches the sessions that have reservations."""

from collections.abc import Iterable

from fluxbudgetd.model import Instance, Response, Usage
from fluxbudgetd.policy.responses import has_usage
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
            first, unsaved = await self._transcripts.first_responses(session)
            _note_first(first, unsaved)
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

    def note_responses(self, session: str, responses: Iterable[Response]) -> None:
        """Add new or changed responses of a session, if it is watched."""
        if session in self._first:
            _note_first(self._first[session], responses)

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


def _note_first(first: dict[int, int | None], responses: Iterable[Response]) -> None:
    for response in responses:
        known = first.get(response.file)
        if response.at is not None and has_usage(response) and (known is None or response.at < known):
            first[response.file] = response.at
