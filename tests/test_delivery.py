"""Delivery to one channel, without a daemon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.clock import now_micros
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger import Ledger, LedgerWriter, open_ledger
from fluxbudgetd.model import Event
from fluxbudgetd.totals.account import RunAccount


class SlowChannel:
    """A channel whose first delivery hangs, and then fails."""

    name = "command"
    latest_only = False
    enabled = True
    is_incomplete = False

    def __init__(self) -> None:
        self.started, self.released, self.delivered = anyio.Event(), anyio.Event(), anyio.Event()

    def wants(self, event: Event) -> bool:
        return True

    def is_outdated(self, account: RunAccount) -> bool:
        return False

    async def reconcile(self) -> None:
        pass

    async def deliver(self, event: Event) -> None:
        if self.started.is_set():
            self.delivered.set()
            return
        self.started.set()
        await self.released.wait()
        raise ChannelError("it was killed", "repair it")


@asynccontextmanager
async def running_delivery(
    directory: Path, channel: SlowChannel, shortest_pause: float
) -> AsyncIterator[tuple[Delivery, Ledger]]:
    """Run the delivery to a channel, with a ledger in this directory."""
    pauses = (shortest_pause, 3600.0)
    newest = NewestEvents()
    ledger, _ = await open_ledger(str(directory), newest.add)
    try:
        events, writer = EventLog(newest, ledger.events), LedgerWriter()
        await events.load()
        delivery = Delivery(channel, events, ledger.deliveries, writer, now_micros, lambda: True, pauses=pauses)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.serve)
            tasks.start_soon(delivery.serve)
            yield delivery, ledger
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ledger.close()


async def save_event(ledger: Ledger) -> None:
    await ledger.events.add([(now_micros(), None, ("source.degraded", {"source": "interstat"}), None)])


@pytest.mark.parametrize("when", ["before it has failed", "afterwards"])
def test_retry_now_retries_at_once(tmp_path: Path, when: str) -> None:
    """It works both during the attempt that fails and in the pause after it."""

    async def body() -> None:
        channel = SlowChannel()
        async with running_delivery(tmp_path, channel, shortest_pause=3600.0) as (delivery, ledger):
            await save_event(ledger)
            await channel.started.wait()
            if when == "before it has failed":
                delivery.retry_now()
            channel.released.set()
            if when == "afterwards":
                with anyio.fail_after(60):
                    while delivery.state != "failing":  # noqa: ASYNC110  a state without an event
                        await anyio.sleep(0.005)
                delivery.retry_now()
            with anyio.move_on_after(10):
                await channel.delivered.wait()
        assert channel.delivered.is_set()

    anyio.run(body)


class FailingChannel(SlowChannel):
    """A channel that fails until `released` is set, and records the times of its attempts."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[float] = []

    async def deliver(self, event: Event) -> None:
        self.attempts.append(anyio.current_time())
        if not self.released.is_set():
            raise ChannelError("it is down", "repair it")
        self.delivered.set()


async def attempted(channel: FailingChannel, times: int) -> None:
    with anyio.fail_after(30):
        while len(channel.attempts) < times:  # noqa: ASYNC110  a state without an event
            await anyio.sleep(0.001)


def test_pauses_double_while_a_channel_fails_and_start_over_after_success(tmp_path: Path) -> None:
    """The n-th pause lasts at least 2ⁿ times the shortest."""
    shortest = 0.005

    async def body() -> None:
        channel = FailingChannel()
        async with running_delivery(tmp_path, channel, shortest) as (delivery, ledger):
            await save_event(ledger)
            await attempted(channel, 7)
            pauses = [later - earlier for earlier, later in pairwise(channel.attempts)]
            assert all(pause >= shortest * 2**number for number, pause in enumerate(pauses)), pauses
            while len(channel.attempts) < 30:  # ends the current pause, if there is one
                delivery.retry_now()
                await attempted(channel, len(channel.attempts) + 1)
            channel.released.set()
            delivery.retry_now()
            with anyio.fail_after(30):
                await channel.delivered.wait()
            channel.released = anyio.Event()
            before = len(channel.attempts)
            await save_event(ledger)
            await attempted(channel, before + 3)

    anyio.run(body)
