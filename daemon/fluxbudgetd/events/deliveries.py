"""All deliveries together."""

from collections.abc import Iterable

import anyio

from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.ledger.deliveries import StoredDeliveries
from fluxbudgetd.totals.account import RunAccount


class Deliveries:
    """One `Delivery` per channel, each in a task of its own."""

    def __init__(self, each: Iterable[Delivery], stored: StoredDeliveries) -> None:
        self.each = tuple(each)
        self._stored = stored

    async def load(self) -> None:
        """Read each channel's position; raises `LedgerError`."""
        positions = await self._stored.positions(one.channel.name for one in self.each)
        for one in self.each:
            one.load(positions[one.channel.name])

    async def serve(self) -> None:
        """Deliver events until cancelled."""
        async with anyio.create_task_group() as tasks:
            for one in self.each:
                tasks.start_soon(one.serve)

    def retry_now(self) -> None:
        """Retry at once what failed on any channel, and have all of them reconcile."""
        for one in self.each:
            one.retry_now()

    def evaluate(self, account: RunAccount) -> None:
        """Have the channels reconcile that show something untrue of a run."""
        for one in self.each:
            if one.channel.is_outdated(account):
                one.retry_now()
