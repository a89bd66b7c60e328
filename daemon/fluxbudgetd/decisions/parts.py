"""What the decisions share."""

from collections.abc import Callable
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.accounts import Accounts


class Parts(NamedTuple):
    """`changing` is the lock of everything that changes a run; `clock` gives microseconds since the epoch."""

    accounts: Accounts
    totals: Totals
    ledger: Ledger
    writer: LedgerWriter
    settings: Settings
    clock: Callable[[], int]
    changing: anyio.Lock
