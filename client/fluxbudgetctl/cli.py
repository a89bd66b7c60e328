"""The command line in argparse. The piped verbs are only listed here, for `--help`."""

import argparse
import io
import sys
from collections.abc import Sequence

from fluxbudgetctl.arguments import FailingParser
from fluxbudgetctl.commands import (
    allow,
    calibrate,
    doctor,
    estimates,
    piped,
    report,
    run,
    service,
    shell_init,
    status,
    sync,
    triage,
    version,
    watch,
)
from fluxbudgetctl.failure import Failure

_EPILOG = """\
Commands about a run take --run, --scope or --session. Without these, the run is named by $FLUXBUDGET_RUN,
$CLAVAIN_BEAD_ID, $CLAUDE_CODE_SESSION_ID or $CLAUDE_SESSION_ID, in this order; without these, it is the nearest active
run: the one whose project is the working directory, else its parent, and so on.

Exit codes: 0 answered, 1 refused (budget, stale phase, doctor, service), 3 no run or no budget, 64 usage, 65 bad input,
69 daemon not reachable, 70 internal, 75 no answer in time, 78 bad config."""

#: In the order in which `--help` lists them.
_COMMANDS = (
    piped,
    status,
    watch,
    run,
    allow,
    estimates,
    triage,
    report,
    calibrate,
    doctor,
    service,
    shell_init,
    sync,
    version,
)


def main(arguments: Sequence[str], native: str | None = None) -> int:
    """Carry out a command line and return the exit code.

    `native` is what the native client says of itself, if one has passed the command line on.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Latin-1 terminal still shows the rest of the table
    options = parser().parse_args(arguments, argparse.Namespace(native=native))
    try:
        return int(options.run_command(options))
    except Failure as failure:
        return failure.report()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    root = FailingParser(
        prog="fluxbudgetctl",
        description="Token budgets of Claude Code sprints: ask the fluxbudget daemon, and manage runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return root
