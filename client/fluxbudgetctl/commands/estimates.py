"""`estimates`: what each agent is expected to cost."""

import os

from fluxbudgetctl import arguments, environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_model
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.screens.output import note, note_stale, print_json
from fluxbudgetctl.screens.reviews import NO_HISTORY
from fluxbudgetd.wire import codes, messages


def add(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(commands, "estimates", "print what agents are expected to cost, as JSON", _estimates)
    add_model(parser, "claude-opus-4-6")
    parser.add_argument(
        "--project",
        type=arguments.path,
        metavar="DIR",
        help="use this project's budget file (default: the run's project, else the working directory)",
    )


def _estimates(options: Options) -> int:
    """Print the JSON that flux-drive's own estimator prints, and what the samples say."""
    project = options.project
    request = messages.Estimates(
        model=options.model,
        slicing=options.slicing,
        project_dir=None if project is None else environment.text(os.path.realpath(project)),
        hints=hints(),
    )
    answer = call(request, messages.EstimatesAnswer, options.timeout)
    note_stale(answer.stale_why)
    if answer.history is None:
        note(NO_HISTORY)
    multiplier = answer.slicing_multiplier
    print_json(
        {
            "estimates": answer.estimates,
            "defaults": answer.defaults,
            "slicing_multiplier": int(multiplier) if multiplier.is_integer() else multiplier,
            "history": "none" if answer.history is None else answer.history,
        }
    )
    return codes.OK
