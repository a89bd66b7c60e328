"""The deliveries of all channels."""

from collections.abc import Iterable

import anyio

from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.ledger.deliveries import StoredDeliveries
from fluxbudgetd.totals.account import RunAccount


class Deliveries:
    """One `Delivery` per channel, each in its own task."""

    def __init__(self, each: Iterable[Delivery], stored: StoredDeliveries) -> None:
        self.each = tuple(each)
        self._stored = stored

    async def load(self) -> None:
        """Read each channel's position; raises `LedgerError`."""
        positions = await self._stored.positions(delivery.channel.name for delivery in self.each)
        for delivery in self.each:
            delivery.load(positions[delivery.channel.name])

    async def serve(self) -> None:
        """Deliver events until cancelled."""
        async with anyio.create_task_group() as tasks:
            for delivery in self.each:
                tasks.start_soon(delivery.serve)

    def retry_now(self) -> None:
        """Retry failed deliveries at once, and have all channels reconcile."""
        for delivery in self.each:
            delivery.retry_now()

    def evaluate(self, account: RunAccount) -> None:
        """Have channels with outdated output about a run reconcile."""
        for delivery in self.each:
            if delivery.channel.is_outdated(account):
                delivery.retry_now()
