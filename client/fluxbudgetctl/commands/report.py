"""`report`: what a review was expected to cost, and what it cost."""

import msgspec

from fluxbudgetctl import arguments
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_names
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.screens.output import note, note_stale, print_json
from fluxbudgetctl.screens.reviews import print_report
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "print what a review was expected to cost and what it cost, as JSON"
    parser = add_command(commands, "report", description, _report)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--triage", type=arguments.text, metavar="ID", help="the triage's id")
    add_names(group)
    parser.add_argument("--markdown", action="store_true", help="print Markdown for people")


def _report(options: Options) -> int:
    request = messages.Report(
        triage=options.triage, run=options.run, scope=options.scope, session=options.session, hints=hints()
    )
    answer = call(request, messages.ReportAnswer, options.timeout)
    note_stale(answer.stale_why)
    if answer.news:
        note(answer.news)
    if options.markdown:
        print_report(answer)
    else:
        fields = msgspec.structs.asdict(answer.report)
        rest = {"run": answer.run, "triages": answer.triages, "stale_why": answer.stale_why, "news": answer.news}
        print_json({**fields, **rest})
    return codes.OK
