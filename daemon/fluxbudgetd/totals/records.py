"""One session's usage, record by record."""

from fluxbudgetd.model import Usage
from fluxbudgetd.totals.account import Sums
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.interstat_reader import InterstatReader
from fluxbudgetd.totals.refresher import Refresher
from fluxbudgetd.totals.row_store import RowStore
from fluxbudgetd.totals.tallier import Tallier


class Records:
    """Returns a session's records, whether it belongs to a run or not."""

    def __init__(
        self, accounts: Accounts, interstat: InterstatReader, rows: RowStore, tallier: Tallier, refresher: Refresher
    ) -> None:
        self._accounts = accounts
        self._interstat = interstat
        self._rows = rows
        self._tallier = tallier
        self._refresher = refresher

    async def of_session(self, name: str, deadline: float) -> tuple[tuple[Usage, ...], str | None]:
        """Return a session's records, and why they are stale (None: fresh).

        They are the responses of its transcripts if those count, otherwise interstat's rows. If the source does
        not answer in time, they are read from the ledger. Raises `LedgerError`.
        """
        session = self._accounts.sessions.get(name)
        is_read = True
        if self._accounts.is_followed(name) and (
            session is None or session.counts_transcripts or session.sums is Sums.UNKNOWN
        ):
            is_read = await self._refresher.refresh([], [name], deadline=deadline)
            session = self._accounts.sessions.get(name)
        if session is not None and session.counts_transcripts:
            stale_why = None if is_read else "transcripts: slow: current numbers were not available in time"
            return await self._tallier.responses(name), stale_why
        rows, status = await self._interstat.session_rows(name, deadline)
        if rows is not None:
            return rows, None
        fault = (
            "slow: current numbers were not available in time"
            if status.is_readable
            else f"{status.state}: {status.detail}"
        )
        return await self._rows.usage(name), f"{status.name}: {fault}"
