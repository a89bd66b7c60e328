"""What the engine's parts share."""

from collections.abc import Callable
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.engine.book import Book
from fluxbudgetd.engine.refresh import Refresher
from fluxbudgetd.engine.sums import Sums
from fluxbudgetd.ledger import Ledger


class Parts(NamedTuple):
    """`changing` is the lock of everything that changes a run; `clock` gives microseconds since the epoch."""

    book: Book
    refresher: Refresher
    sums: Sums
    ledger: Ledger
    settings: Settings
    clock: Callable[[], int]
    changing: anyio.Lock
