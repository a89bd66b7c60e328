"""The daemon itself: its identity."""

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
