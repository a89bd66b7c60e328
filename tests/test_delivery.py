"""Delivery to one channel, without a daemon."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.clock import now_micros
from fluxbudgetd.errors import ChannelError
from fluxbudgetd.events import delivery as delivery_module
from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger import Ledger, LedgerWriter, open_ledger
from fluxbudgetd.model import Event
from fluxbudgetd.totals.account import RunAccount


class _Slow:
    """A channel whose first delivery hangs, and then fails."""

    name = "command"
    latest_only = False
    enabled = True
    is_incomplete = False

    def __init__(self) -> None:
        self.began, self.let, self.delivered = anyio.Event(), anyio.Event(), anyio.Event()

    def wants(self, event: Event) -> bool:
        return True

    def is_outdated(self, account: RunAccount) -> bool:
        return False

    async def reconcile(self) -> None:
        pass

    async def deliver(self, event: Event) -> None:
        if self.began.is_set():
            self.delivered.set()
            return
        self.began.set()
        await self.let.wait()
        raise ChannelError("it was killed", "mend it")


@asynccontextmanager
async def _served(directory: Path, channel: "_Slow") -> AsyncIterator[tuple[Delivery, Ledger]]:
    """Deliver to a channel, with a ledger of its own."""
    newest = NewestEvents()
    ledger, _ = await open_ledger(str(directory), newest.add)
    try:
        events, writer = EventLog(newest, ledger.events), LedgerWriter()
        await events.load()
        delivery = Delivery(channel, events, ledger.deliveries, writer, now_micros, lambda: True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.serve)
            tasks.start_soon(delivery.serve)
            yield delivery, ledger
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await ledger.close()


async def _save_event(ledger: Ledger) -> None:
    await ledger.events.add([(now_micros(), None, ("source.degraded", {"source": "interstat"}))])


@pytest.mark.parametrize("when", ["before it has failed", "afterwards"])
def test_failed_channel_is_tried_again_as_soon_as_something_is_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A command hangs for a minute, and is mended meanwhile or afterwards: that is not noticed only minutes later."""
    monkeypatch.setattr(delivery_module, "_SHORTEST_PAUSE_SECONDS", 3600.0)

    async def body() -> None:
        channel = _Slow()
        async with _served(tmp_path, channel) as (delivery, ledger):
            await _save_event(ledger)
            await channel.began.wait()
            if when == "before it has failed":
                delivery.retry_now()
            channel.let.set()
            if when == "afterwards":
                with anyio.fail_after(10):
                    while delivery.state != "failing":  # noqa: ASYNC110  it is seen from outside
                        await anyio.sleep(0.005)
                delivery.retry_now()
            with anyio.move_on_after(10):
                await channel.delivered.wait()
        assert channel.delivered.is_set()

    anyio.run(body)


class _Failing(_Slow):
    """A channel that fails until it is let; it notes when it was tried."""

    def __init__(self) -> None:
        super().__init__()
        self.tries: list[float] = []

    async def deliver(self, event: Event) -> None:
        self.tries.append(anyio.current_time())
        if not self.let.is_set():
            raise ChannelError("it is down", "mend it")
        self.delivered.set()


async def _tried(channel: _Failing, times: int) -> None:
    with anyio.fail_after(30):
        while len(channel.tries) < times:  # noqa: ASYNC110  it is seen from outside
            await anyio.sleep(0.001)


def test_pauses_grow_while_a_channel_fails_and_are_short_again_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause is never shorter than twice the one before; who has worked in between is tried again soon."""
    shortest = 0.005
    monkeypatch.setattr(delivery_module, "_SHORTEST_PAUSE_SECONDS", shortest)
    monkeypatch.setattr(delivery_module, "_LONGEST_PAUSE_SECONDS", 3600.0)

    async def body() -> None:
        channel = _Failing()
        async with _served(tmp_path, channel) as (delivery, ledger):
            await _save_event(ledger)
            await _tried(channel, 7)
            pauses = [later - earlier for earlier, later in pairwise(channel.tries)]
            assert all(pause >= shortest * 2**number for number, pause in enumerate(pauses)), pauses
            while len(channel.tries) < 30:  # at once, whatever pause it is in
                delivery.retry_now()
                await _tried(channel, len(channel.tries) + 1)
            channel.let.set()
            delivery.retry_now()
            with anyio.fail_after(30):
                await channel.delivered.wait()
            channel.let = anyio.Event()
            before = len(channel.tries)
            await _save_event(ledger)
            await _tried(channel, before + 3)

    anyio.run(body)
