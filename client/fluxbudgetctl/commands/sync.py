"""`sync`: write back now what runs have used."""

from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_naming
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.failure import print_stderr
from fluxbudgetctl.screens.output import note, print_json
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import one_line


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "write the usage of adopted runs into intercore's databases now (default: of all adopted runs)"
    add_naming(add_command(commands, "sync", description, _sync, timeout=5.0))


def _sync(options: Options) -> int:
    request = messages.Sync(run=options.run, scope=options.scope, session=options.session, hints=hints())
    answer = call(request, messages.SyncAnswer, options.timeout)
    if options.json:
        print_json({"runs": answer.runs, "faults": answer.faults})
    for fault in answer.faults:
        note(fault.what)
        print_stderr(f"hint: {one_line(fault.hint)}")
    return codes.REFUSED if answer.faults else codes.OK
