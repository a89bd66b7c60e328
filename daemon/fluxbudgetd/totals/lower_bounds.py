"""Totals that are lower bounds, because something in a session's transcripts could not be read."""

from fluxbudgetd.totals.account import RunAccount, SessionAccount
from fluxbudgetd.totals.transcript_store import TranscriptStore


class LowerBounds:
    """Says in words why totals are lower bounds, as of the last reading of the transcripts."""

    def __init__(self, transcripts: TranscriptStore) -> None:
        self._transcripts = transcripts

    def of_session(self, name: str, session: SessionAccount) -> tuple[str, ...]:
        """Return why a session's total is a lower bound; empty if it is not, or if it comes from interstat."""
        losses = self._transcripts.losses.get(name)
        if losses is None or not (session.counts_transcripts or not _has_rows(session)):
            return ()
        return (*losses.unread, *losses.placeholders)

    def of_run(self, account: RunAccount) -> tuple[str, ...]:
        """Return why a run's total is a lower bound; empty if it is not."""
        if not self._transcripts.losses:  # the usual case, which `status` asks for each run
            return ()
        reasons = (self.of_session(name, session) for name, session in account.sessions.items())
        return tuple(reason for of_session in reasons for reason in of_session)


def _has_rows(session: SessionAccount) -> bool:
    return any(counts.records for counts in session.cells.values())
