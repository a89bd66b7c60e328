"""What handlers share: their context, one deadline per request, finding the run that is meant."""

from collections.abc import Callable

import anyio
import msgspec

from fluxbudgetd.service import Service
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire import messages as wire

# The answer has to be back before the sender gives up.
_WAIT_SHARE = 0.75
_MAX_WAIT_SECONDS = 20.0


class Context(msgspec.Struct):
    """What a handler works with. `connections` counts the open ones."""

    service: Service
    state_dir: str
    started_at: int
    connections: Callable[[], int]


def deadline_of(request: wire.Request) -> float:
    """Return when the answer has to be made, by the loop's clock: one deadline for all that a request waits for."""
    wait = min(max(request.wait_ms, 0) / 1000 * _WAIT_SHARE, _MAX_WAIT_SECONDS)
    return anyio.current_time() + wait


async def find(context: Context, request: wire.Naming, deadline: float) -> RunAccount:
    """Return the run that a request means; raises `NoRunError`."""
    return await context.service.totals.find(request.run, request.scope, request.session, request.hints, deadline)
