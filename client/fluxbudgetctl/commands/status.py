"""`status`: the active runs."""

import msgspec

from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_naming
from fluxbudgetctl.calls import TimeLimit, call, hints
from fluxbudgetctl.screens.output import print_json
from fluxbudgetctl.screens.status import print_status
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "show the active runs, or one of them, the sources, and usage that belongs to no run"
    add_naming(add_command(commands, "status", description, _status))


def _status(options: Options) -> int:
    limit = TimeLimit(options.timeout)
    request = messages.Status(run=options.run, scope=options.scope, session=options.session, cwd=hints().cwd)
    answer = page = call(request, messages.StatusAnswer, options.timeout)
    while page.next is not None:
        page = call(messages.Status(after=page.next), messages.StatusAnswer, limit.left())
        answer = msgspec.structs.replace(answer, runs=answer.runs + page.runs)
    if options.json:
        names = ("runs", "sources", "unattributed", "databases")
        print_json({name: getattr(answer, name) for name in names})
    else:
        print_status(answer)
    return codes.OK
