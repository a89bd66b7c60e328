"""`advance`: check the budget, then move the run to its next phase."""

import msgspec

from fluxbudgetctl import arguments, environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_naming, add_override
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.screens.output import note, note_stale, print_json
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "check the budget, then move the run to its next phase: 'advanced|P|Q'"
    parser = add_command(commands, "advance", description, _advance)
    add_naming(parser)
    parser.add_argument(
        "--from",
        dest="from_phase",
        type=arguments.text,
        required=True,
        metavar="P",
        help="the phase you expect the run to be in",
    )
    parser.add_argument(
        "--to", dest="to_phase", type=arguments.text, metavar="Q", help="a later phase (default: the next one)"
    )
    add_override(parser)


def _advance(options: Options) -> int:
    request = messages.Advance(
        run=options.run,
        scope=options.scope,
        session=options.session,
        hints=hints(),
        from_phase=options.from_phase,
        to_phase=options.to_phase,
        override=options.override or environment.override(),
    )
    answer = call(request, messages.AdvanceAnswer, options.timeout)
    note_stale(answer.spend.stale_why)
    if answer.note:
        note(answer.note)
    if answer.overridden:
        note(f"the budget is exceeded; overridden: {answer.overridden}")
    if options.json:
        fields = msgspec.structs.asdict(answer)
        print_json({name: value for name, value in fields.items() if name != "ok"})
    else:
        print(answer.line)
    return codes.OK if answer.advanced else codes.REFUSED
