"""The stream of events."""

from collections.abc import AsyncGenerator

import anyio

from fluxbudgetd.engine.engine import now_micros
from fluxbudgetd.handlers.common import Context
from fluxbudgetd.model import Event, to_text
from fluxbudgetd.wire import messages as wire

_SHORTEST_HEARTBEAT_MS = 100


async def subscribe(context: Context, request: wire.Subscribe) -> AsyncGenerator[wire.AnyAnswer, None]:
    """Yield what happens, for ever: every event once, in the order of its number."""
    events = context.engine.events
    if request.run is not None:
        context.engine.book.find(request.run, None, None, wire.Hints())
    place = events.last if request.since is None else max(0, request.since)
    if place > events.last:
        place = 0  # another ledger's number: to this reader all of this one is new
    yield wire.SubscribedAnswer(since=place, last=events.last)
    caught_up = False
    while True:
        if place >= events.last:
            caught_up = True
            if not await _comes(context, place, request.heartbeat_ms):
                yield wire.HeartbeatAnswer(at=to_text(now_micros()), seq=place)
                continue
        if caught_up and not events.are_kept(place):
            caught_up = False
            yield wire.LaggedAnswer(at=to_text(now_micros()), seq=place, behind=events.last - place)
        for event in await events.behind(place):
            place = event.seq
            if request.run in (None, event.run):
                yield _answer(event)


async def _comes(context: Context, place: int, heartbeat_ms: int) -> bool:
    """Wait for something behind a place, or for the time of a heartbeat; tells whether something has come."""
    if heartbeat_ms <= 0:
        await context.engine.events.wait(place)
        return True
    with anyio.move_on_after(max(heartbeat_ms, _SHORTEST_HEARTBEAT_MS) / 1000):
        await context.engine.events.wait(place)
        return True
    return False


def _answer(event: Event) -> wire.EventAnswer:
    return wire.EventAnswer(seq=event.seq, at=to_text(event.at), run=event.run, kind=event.kind, data=event.data)
