"""`allow`: let a run go on once although its hard budget is exhausted."""

from fluxbudgetctl import arguments
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_naming
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.screens.output import print_json
from fluxbudgetctl.screens.runs import allowance_line
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(commands, "allow", "let a run go on once although its hard budget is exhausted", _allow)
    add_naming(parser)
    more = parser.add_mutually_exclusive_group()
    more.add_argument(
        "--tokens", type=arguments.whole_number, metavar="N", help="for N more tokens (default: 10 %% of the budget)"
    )
    more.add_argument(
        "--minutes", type=arguments.whole_number, metavar="M", help="for M minutes, however much it spends"
    )


def _allow(options: Options) -> int:
    request = messages.RunAllow(
        run=options.run,
        scope=options.scope,
        session=options.session,
        hints=hints(),
        tokens=options.tokens,
        minutes=options.minutes,
    )
    answer = call(request, messages.RunAnswer, options.timeout)
    if options.json:
        print_json({"run": answer.run, "changed": answer.changed})
    else:
        print(allowance_line(answer))
    return codes.OK
