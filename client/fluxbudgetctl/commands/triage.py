"""`triage`: decide which review agents may be launched."""

import sys
from typing import get_args

import msgspec

from fluxbudgetctl import arguments, environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_model, add_naming
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.output import note, note_stale, print_json
from fluxbudgetctl.screens.reviews import NO_HISTORY, override_offer, print_triage
from fluxbudgetd.wire import codes, messages

# The request must fit into a frame.
_MAX_INPUT = 1 << 20
_HINT = 'give {"agents": [{"name": "fd-safety", "score": 4, "stage": 1}, …]} on stdin'


class _Input(msgspec.Struct):
    agents: tuple[messages.TriageAgent, ...]


def add(commands: Subcommands) -> None:
    """Add the command."""
    description = "decide which review agents may be launched: JSON list of agents on stdin, JSON on stdout"
    parser = add_command(commands, "triage", description, _triage)
    add_naming(parser)
    add_model(parser, "the session's")
    parser.add_argument(
        "--input-type",
        type=arguments.text,
        metavar="T",
        default="other",
        help="plan, repo, …: sets the budget (default: other)",
    )
    parser.add_argument(
        "--round",
        choices=get_args(messages.TriageRound),
        default="review",
        help="reaction: the agents react to each other's findings, within reaction_budget (default: review)",
    )
    parser.add_argument(
        "--override", type=arguments.text, metavar="REASON", help="select all agents, unless enforcement is hard"
    )
    parser.add_argument("--table", action="store_true", help="print a table for people")


def _triage(options: Options) -> int:
    request = messages.TriageRequest(
        run=options.run,
        scope=options.scope,
        session=options.session,
        hints=hints(),
        agents=_read_agents(),
        input_type=options.input_type,
        model=options.model,
        slicing=options.slicing,
        override=options.override,
        round=options.round,
        sprint_remaining=environment.sprint_remaining(),
    )
    answer = call(request, messages.TriageAnswer, options.timeout)
    if answer.round != options.round:
        raise Failure(
            f"the daemon is older than this client: it does not know --round {options.round}",
            "compare versions with 'fluxbudgetctl version', and restart the daemon",
            codes.INTERNAL,
        )
    note_stale(answer.stale_why)
    if answer.history == "none" and any(line.source == "default" for line in answer.agents):
        note(NO_HISTORY)
    if answer.note:
        note(answer.note)
    if answer.overridable:
        note(override_offer(answer))
    if options.table:
        print_triage(answer)
    else:
        fields = msgspec.structs.asdict(answer)
        print_json({name: value for name, value in fields.items() if name != "ok"})
    return codes.REFUSED if answer.verdict == "blocked" else codes.OK


def _read_agents() -> tuple[messages.TriageAgent, ...]:
    """Return the agents on stdin; raises `Failure`, naming the place of a mistake."""
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("no agents: stdin is closed or a terminal", _HINT, codes.BAD_INPUT)
    data = sys.stdin.buffer.read(_MAX_INPUT + 1)
    if len(data) > _MAX_INPUT:
        raise Failure("agents: more than 1 MiB of input", _HINT, codes.BAD_INPUT)
    try:
        agents = msgspec.json.decode(data, type=_Input).agents
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Failure(f"agents: {_with_place(str(exc))}", _HINT, codes.BAD_INPUT) from None
    for index, agent in enumerate(agents):
        if not -messages.MAX_TOKENS <= agent.stage <= messages.MAX_TOKENS:  # MessagePack could not hold it
            message = f"agents[{index}].stage is {agent.stage}"[:200]
            raise Failure(message, "1 or 2 is allowed", codes.BAD_INPUT)
    return agents


def _with_place(problem: str) -> str:
    """Return msgspec's error message with the place in front, as people write it: `agents[3].score`."""
    if problem == "Input data was truncated":
        return "the JSON is truncated: the input is empty or ends too early"
    message, _, place = problem.partition(" - at `$.")
    return f"{place.rstrip('`')}: {message}" if place else message
