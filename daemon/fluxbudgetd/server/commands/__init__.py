"""The command lines that clients forward: parsed, carried out by the handlers, and rendered."""

from fluxbudgetd.server.handlers import Context
from fluxbudgetd.wire import messages as wire

__all__ = ["command"]

_NOT_MINE = wire.CommandAnswer(mine=False)


def command(_context: Context, _request: wire.Command) -> wire.CommandAnswer:
    """Carry out a command line."""
    return _NOT_MINE
