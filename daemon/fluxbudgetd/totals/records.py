"""One session's usage, record by record."""

from fluxbudgetd.model import Usage
from fluxbudgetd.totals.account import Sums
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.refresher import Refresher
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.tallier import Tallier


class Records:
    """Answers which records a session has, whether it belongs to a run or not."""

    def __init__(
        self, accounts: Accounts, interstat: InterstatReader, rows: RowStore, tallier: Tallier, refresher: Refresher
    ) -> None:
        self._accounts = accounts
        self._interstat = interstat
        self._rows = rows
        self._tallier = tallier
        self._refresher = refresher

    async def of_session(self, name: str, deadline: float) -> tuple[tuple[Usage, ...], str | None]:
        """Return a session's records, and why they are not the source's present ones (None: they are).

        They are the responses of its transcripts if those count, otherwise interstat's rows. A source that does not
        answer in time is replaced by what the ledger has of it; raises `LedgerError`.
        """
        session = self._accounts.sessions.get(name)
        is_read = True
        if self._accounts.is_followed(name) and (
            session is None or session.counts_transcripts or session.sums is Sums.UNKNOWN
        ):
            is_read = await self._refresher.refresh([], [name], deadline=deadline)
            session = self._accounts.sessions.get(name)
        if session is not None and session.counts_transcripts:
            why = None if is_read else "transcripts: slow: the present numbers were not there in time"
            return await self._tallier.responses(name), why
        found, status = await self._interstat.session_rows(name, deadline)
        if found is not None:
            return found, None
        why = (
            f"{status.state}: {status.detail}"
            if not status.readable
            else "slow: the present numbers were not there in time"
        )
        return await self._rows.usage(name), f"{status.name}: {why}"
