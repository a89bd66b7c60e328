"""The stream of events."""

import math
from collections.abc import AsyncGenerator

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Event, to_text
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.wire import messages as wire

_SHORTEST_HEARTBEAT_MS = 100


async def subscribe(context: Context, request: wire.Subscribe) -> AsyncGenerator[wire.AnyAnswer, None]:
    """Yield what happens, for ever: every event once, in the order of its number."""
    events = context.service.events
    if request.run is not None:
        context.service.accounts.find(request.run, None, None, wire.Hints())
    place = events.last if request.since is None else max(0, request.since)
    if place > events.last:
        place = 0  # another ledger's number: to this reader all of this one is new
    yield wire.SubscribedAnswer(since=place, last=events.last)
    caught_up = False
    patience = max(request.heartbeat_ms, _SHORTEST_HEARTBEAT_MS) / 1000 if request.heartbeat_ms > 0 else math.inf
    said_at = anyio.current_time()
    while True:
        if place >= events.last:
            caught_up = True
            with anyio.CancelScope(deadline=said_at + patience):
                await events.wait(place)
        # Others' events are no sign of life to a reader of one run's.
        if anyio.current_time() >= said_at + patience:
            yield wire.HeartbeatAnswer(at=to_text(now_micros()), seq=place)
            said_at = anyio.current_time()
        if caught_up and not events.are_kept(place):
            caught_up = False
            yield wire.LaggedAnswer(at=to_text(now_micros()), seq=place, behind=events.last - place)
        for event in await events.behind(place):
            place = event.seq
            if request.run in (None, event.run):
                yield _answer(event)
                said_at = anyio.current_time()


def _answer(event: Event) -> wire.EventAnswer:
    return wire.EventAnswer(seq=event.seq, at=to_text(event.at), run=event.run, kind=event.kind, data=event.data)
