"""The daemon itself: its identity, and what a client asks before it removes the service."""

import os

from fluxbudgetd import __version__
from fluxbudgetd.model import to_text
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.wire import codes
from fluxbudgetd.wire import messages as wire


def ping(context: Context, _request: wire.Ping) -> wire.PingAnswer:
    """Return the daemon's identity."""
    return wire.PingAnswer(
        version=__version__, protocol=codes.VERSION, pid=os.getpid(), started_at=to_text(context.started_at)
    )


async def loosen(context: Context, request: wire.Loosen, pid: int) -> wire.LoosenAnswer:
    """Record that the client does something that leaves runs without a limit, or refuse it."""
    caller = await context.service.callers.look_up(pid)
    await context.service.loosenings.record(request.action, caller)
    return wire.LoosenAnswer()
