"""`version`: the versions of the client and the daemon."""

from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetctl.calls import call
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.output import print_json
from fluxbudgetctl.versions import called_client, half_upgrade
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    add_command(commands, "version", "print the versions of the client and the daemon", _version)


def _version(options: Options) -> int:
    """Print the versions; if the daemon does not answer, print the client's and fail."""
    called = called_client(options.native)
    client = {"client": called.version, "client_kind": called.kind, "client_build": called.build}
    line = f"fluxbudgetctl {called.version} ({called.shown})"
    if half := half_upgrade(options.native):
        half.report()
    try:
        answer = call(messages.Ping(), messages.PingAnswer, options.timeout)
    except Failure:
        if options.json:
            print_json({**client, "daemon": None, "protocol": codes.VERSION})
        else:
            print(line, flush=True)
        raise
    if options.json:
        print_json({**client, "daemon": answer.version, "protocol": answer.protocol})
    else:
        print(f"{line}\nfluxbudgetd {answer.version} (pid {answer.pid})")
    return codes.OK
