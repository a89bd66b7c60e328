"""The command lines that clients forward: parsed, carried out by the handlers, and rendered."""

from fluxbudgetd.server.commands import verbs
from fluxbudgetd.server.commands.gathering import Result
from fluxbudgetd.server.commands.words import parse
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.wire import messages as wire

__all__ = ["command"]

_NOT_MINE = wire.CommandAnswer(mine=False)
_VERBS = {
    "remaining": verbs.remaining,
    "env": verbs.env,
    "check": verbs.check,
    "advance": verbs.advance,
    "ping": verbs.ping,
    "numbers": verbs.numbers,
    "tokens": verbs.tokens,
    "defaults": verbs.defaults,
}
#: The verbs that read stdin.
_READERS = {"hook": verbs.hook, "statusline": verbs.status_line}


def command(context: Context, request: wire.Command, pid: int) -> Result:
    """Carry out a command line. `mine` is False in the answer if the Python client must handle it."""
    options = parse(request, pid)
    if options is None:
        return _NOT_MINE
    if reader := _READERS.get(options.verb):
        return reader(context, options, request)
    return _VERBS[options.verb](context, options)
