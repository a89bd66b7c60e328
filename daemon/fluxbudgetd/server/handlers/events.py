"""The stream of events."""

import math
from collections.abc import AsyncGenerator

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import to_text
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.structs import converted
from fluxbudgetd.wire import messages as wire

_SHORTEST_HEARTBEAT_MS = 100


async def subscribe(context: Context, request: wire.Subscribe) -> AsyncGenerator[wire.AnyAnswer, None]:
    """Yield events, each once, in the order of their numbers, until closed."""
    events = context.service.events
    if request.run is not None:
        context.service.totals.chooser.named(request.run, None, None, wire.Hints())
    position = events.last if request.since is None else max(0, request.since)
    if position > events.last:
        position = 0  # the number is from another ledger: this client has seen no event of this one
    yield wire.SubscribedAnswer(since=position, last=events.last)
    has_caught_up = False
    silence = max(request.heartbeat_ms, _SHORTEST_HEARTBEAT_MS) / 1000 if request.heartbeat_ms > 0 else math.inf
    sent_at = anyio.current_time()
    while True:
        if position >= events.last:
            has_caught_up = True
            with anyio.CancelScope(deadline=sent_at + silence):
                await events.wait(position)
        # Another run's events are not sent, so they do not replace a heartbeat.
        if anyio.current_time() >= sent_at + silence:
            yield wire.HeartbeatAnswer(at=to_text(now_micros()), seq=position)
            sent_at = anyio.current_time()
        if has_caught_up and not events.is_in_memory(position):
            has_caught_up = False
            yield wire.LaggedAnswer(at=to_text(now_micros()), seq=position, behind=events.last - position)
        for event in await events.after(position):
            position = event.seq
            if request.run in (None, event.run):
                yield converted(event, wire.EventAnswer, at=to_text(event.at))
                sent_at = anyio.current_time()
