"""The whole command line: every verb's flags and help. Hot verbs come here only for `--help` and mistakes."""

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

from fluxbudgetctl import environment, hot, reviews, settings_block, verbs, watch
from fluxbudgetctl.failure import Failure, one_line
from fluxbudgetd.wire import codes

_EPILOG = """\
A run is named by --run, --scope or --session; else by $FLUXBUDGET_RUN, $CLAVAIN_BEAD_ID, $CLAUDE_CODE_SESSION_ID,
$CLAUDE_SESSION_ID; else it is the only active run whose project directory is the working directory or a parent of it.

Exit codes: 0 answered, 1 refused (budget, stale phase, doctor, service), 3 no run or no budget, 64 usage, 65 bad input,
69 daemon not reachable, 70 internal, 75 no answer in time, 78 bad config."""

_SHORTEST_HEARTBEAT, _LONGEST_HEARTBEAT = 0.1, 3600.0
_MAX_SEQ = 2**63 - 1

_HELP = {
    "remaining": "print the tokens that are left: one integer (no run or no budget: 0, exit 3)",
    "env": "print 'export FLUX_BUDGET_REMAINING=N' for eval (exhausted: 1; no run or no budget: nothing, exit 3)",
    "check": "may this run go on? 'ok', or the reason and exit 1, every time",
    "ping": "is the daemon there?",
    "hook": "answer a Claude Code hook: JSON on stdin, JSON out; nothing, and exit 0, when anything is wrong",
    "statusline": "print one line for Claude Code's status line",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = f"see '{self.prog} --help'"
        raise SystemExit(Failure(message, hint, codes.USAGE).tell())


if TYPE_CHECKING:
    # argparse gives them no public names.
    _Commands = argparse._SubParsersAction[_Parser]  # noqa: SLF001
    _Group = argparse._MutuallyExclusiveGroup  # noqa: SLF001


def run(arguments: Sequence[str], native: str | None = None) -> int:
    """Carry out a command line; return the exit code. `native`: the version of the native client that handed it on."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a Latin-1 terminal still gets the rest of the table
    options = parser().parse_args(arguments, argparse.Namespace(native=native))
    try:
        return int(options.carry_out(options))
    except Failure as failure:
        return failure.tell()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    made = _Parser(
        prog="fluxbudgetctl",
        description="Ask and tell the fluxbudget daemon: token budgets of Claude Code sprints, live.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in hot.VERBS:
        _add_hot(commands, name)
    status = _add(
        commands, "status", "show the active runs (or one), the sources, and what belongs to no run", verbs.status
    )
    _add_naming(status)
    _add_watch(commands)
    _add_runs(commands)
    _add_advance(commands)
    _add_reviews(commands)
    _add(
        commands, "doctor", "look at everything; say what is wrong and what to do; exit 1 if anything is", verbs.doctor
    )
    _add_service(commands)
    _add(commands, "version", "print the versions of client and daemon", verbs.version)
    return made


def _add_hot(commands: "_Commands", name: str) -> None:
    def carry_out(options: argparse.Namespace) -> int:
        naming = (getattr(options, "run", None), getattr(options, "scope", None), getattr(options, "session", None))
        hot_options = hot.Options(
            name,
            naming,
            timeout=options.timeout,
            switches=[name for name in ("json", "no_colour") if getattr(options, name, False)],
            default=getattr(options, "default", None),
            override=getattr(options, "override", None),
            width=getattr(options, "width", None),
        )
        if getattr(options, "print_settings", False):
            return settings_block.show()
        return hot.run(hot_options)

    made = _add(commands, name, _HELP[name], carry_out, hot.limit(hot.Options(name)), bare=True)
    if hot.NAMING_FLAGS[0] in hot.VERBS[name]:
        _add_naming(made)
    if "--json" in hot.VERBS[name]:
        made.add_argument("--json", action="store_true", help="print a JSON object")
    if "--override" in hot.VERBS[name]:
        _add_override(made)
    if "--default" in hot.VERBS[name]:
        made.add_argument("--default", type=int, metavar="N", help="print N, exit 0, when the daemon gives no answer")
    if "--width" in hot.VERBS[name]:
        made.add_argument("--width", type=environment.cells, metavar="N", help="cells (default: $COLUMNS, or no limit)")
        made.add_argument("--no-colour", "--no-color", action="store_true", help="as with $NO_COLOR")
    if name == "hook":
        made.add_argument(
            "--print-settings", action="store_true", help="print what to merge into Claude Code's settings.json"
        )


def _add_watch(commands: "_Commands") -> None:
    made = _add(commands, "watch", "print what happens, as it happens: one JSON object a line", watch.watch, bare=True)
    made.add_argument("--since", type=_since, metavar="SEQ", help="begin behind this event (default: the last one)")
    made.add_argument("--run", type=_text, metavar="ID", help="only this run's events")
    made.add_argument(
        "--heartbeat", type=_heartbeat, metavar="S", help="say so after this long a silence; 0: never (default: 30)"
    )
    made.add_argument("--tui", action="store_true", help="the same as 'top'")
    shown = _add(commands, "top", "show the active runs live: phases, agents, events", watch.top, bare=True)
    shown.add_argument("--run", type=_text, metavar="ID", help="select this run at first")


def _add_runs(commands: "_Commands") -> None:
    group = commands.add_parser("run", help="start, list, show, change and end runs", allow_abbrev=False)
    runs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    start = _add(runs, "start", "start a run and print its id; the same again is the same run", verbs.run_start)
    start.add_argument("--id", type=_text, help="the run's id (default: generated)")
    start.add_argument("--scope", type=_text, metavar="BEAD", help="the bead that the run is about")
    start.add_argument("--project", type=_path, metavar="DIR", help="its directory (default: the working directory)")
    start.add_argument("--goal", type=_text, metavar="TEXT", help="one line for people")
    start.add_argument("--complexity", type=int, metavar="1-5", help="decides the default budget (default: 3)")
    start.add_argument(
        "--budget", type=_budget, metavar="N", help="tokens, or 'none' (default: 250000 at complexity 3)"
    )
    start.add_argument("--warn-pct", type=int, metavar="1-99", help="when the state becomes 'warning' (default: 80)")
    start.add_argument("--enforcement", type=_text, metavar="soft|hard", help="default: soft")
    start.add_argument(
        "--cost-basis", type=_text, metavar="billing|total", help="input + output, or with cache (default: billing)"
    )
    start.add_argument("--phases", type=_phases, metavar="A,B,C", help="the run's chain of phases")
    start.add_argument("--session", type=_text, metavar="S", help="attach this session")
    _add_transcript(start)
    _add(runs, "list", "list the active runs", verbs.run_list).add_argument(
        "--all", action="store_true", help="the ended ones too"
    )
    _add_naming(_add(runs, "show", "show a run by phase, macro-stage, agent, model and session", verbs.run_show))
    change = _add(runs, "set", "change an active run", verbs.run_set)
    _add_naming(change)
    change.add_argument("--budget", type=_budget, metavar="N", help="tokens, or 'none'")
    change.add_argument("--warn-pct", type=int, metavar="1-99", help="when the state becomes 'warning'")
    change.add_argument("--enforcement", type=_text, metavar="soft|hard", help="what an exceeded budget does")
    for name, what, carry_out in (
        ("attach", "from now on, a session belongs to the run", verbs.run_attach),
        ("detach", "from now on, a session belongs to no run", verbs.run_detach),
    ):
        made = _add(runs, name, what, carry_out)
        made.add_argument("--session", type=_text, required=True, metavar="S", help="the session's id")
        if name == "attach":
            _add_transcript(made)
        which = made.add_mutually_exclusive_group()
        which.add_argument("--run", type=_text, metavar="ID", help="the run's id")
        which.add_argument("--scope", type=_text, metavar="BEAD", help="the run's bead")
    _add_naming(_add(runs, "finish", "end a run as done", verbs.run_finish))
    _add_naming(_add(runs, "cancel", "give a run up", verbs.run_cancel))


def _add_advance(commands: "_Commands") -> None:
    made = _add(commands, "advance", "check, then take the run to its next phase: 'advanced|P|Q'", verbs.advance)
    _add_naming(made)
    made.add_argument(
        "--from", dest="from_phase", type=_text, required=True, metavar="P", help="the phase that it is in, you think"
    )
    made.add_argument("--to", dest="to_phase", type=_text, metavar="Q", help="a later phase (default: the next one)")
    _add_override(made)


def _add_reviews(commands: "_Commands") -> None:
    estimates = _add(commands, "estimates", "print what agents are expected to cost, as JSON", reviews.estimates)
    _add_model(estimates)
    estimates.add_argument(
        "--project", type=_path, metavar="DIR", help="whose budget file counts (default: the run's, or here)"
    )
    triage = _add(
        commands, "triage", "which review agents may be launched? JSON of agents on stdin, JSON out", reviews.triage
    )
    _add_naming(triage)
    _add_model(triage)
    triage.add_argument(
        "--input-type", type=_text, metavar="T", default="other", help="decides the budget: plan, repo …"
    )
    triage.add_argument("--override", type=_text, metavar="REASON", help="select all (not when enforcement is hard)")
    triage.add_argument("--table", action="store_true", help="print a table for people")
    report = _add(
        commands, "report", "print what a review was expected to cost, and what it did, as JSON", reviews.report
    )
    which = report.add_mutually_exclusive_group()
    which.add_argument("--triage", type=_text, metavar="ID", help="the triage's id")
    _add_names(which)
    report.add_argument("--markdown", action="store_true", help="print it for people")
    calibrate = _add(commands, "calibrate", "what have phases and agents really cost?", reviews.calibrate)
    calibrate.add_argument(
        "--write", action="store_true", help="keep it beside the configuration, for estimates to come"
    )


def _add_service(commands: "_Commands") -> None:
    what = "fluxbudgetd as a systemd user service, which the first call starts"
    group = commands.add_parser("service", help=what, description=what, allow_abbrev=False)
    verbs_of_it = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    made: dict[str, argparse.ArgumentParser] = {}
    for name, told in (
        ("install", "write and enable the units; a service that runs goes over to them"),
        ("uninstall", "stop, disable and remove the units; the ledger and the configuration stay"),
        ("status", "is it installed, does it listen, does it run? exit 1 if not"),
    ):
        made[name] = verbs_of_it.add_parser(name, help=told, description=told, allow_abbrev=False)
        made[name].set_defaults(carry_out=_carry_out_of_service(name))
    made["install"].add_argument("--now", action="store_true", help="listen at once, not only from the next login on")
    made["install"].add_argument("--print", action="store_true", help="only print what would be written")
    for name in ("install", "uninstall"):
        made[name].add_argument(
            "--force", action="store_true", help="also when a unit was edited, or written by somebody else"
        )
    made["status"].add_argument("--json", action="store_true", help="print JSON")


def _carry_out_of_service(name: str) -> Callable[[argparse.Namespace], int]:
    def carry_out(options: argparse.Namespace) -> int:
        from fluxbudgetctl.service import verbs as service  # noqa: PLC0415  subprocess and hashlib, for these verbs only

        carry: dict[str, Callable[[argparse.Namespace], int]] = {
            "install": service.install,
            "uninstall": service.uninstall,
            "status": service.status,
        }
        return carry[name](options)

    return carry_out


def _add_transcript(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--transcript", type=_path, metavar="FILE", help="the session's transcript (default: found by its id)"
    )


def _add_model(made: argparse.ArgumentParser) -> None:
    made.add_argument("--model", type=_text, metavar="M", help="rows of this model count (default: claude-opus-4-6)")
    made.add_argument("--slicing", action="store_true", help="agents are given slices of the document")


def _add_override(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--override",
        type=_text,
        metavar="REASON",
        help="pass an exceeded budget, not when enforcement is hard (default: $CLAVAIN_SKIP_BUDGET)",
    )


def _add(
    commands: "_Commands",
    name: str,
    what: str,
    carry_out: Callable[[argparse.Namespace], int],
    limit: float = hot.PATIENT_SECONDS,
    *,
    bare: bool = False,
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    made.set_defaults(carry_out=carry_out)
    made.add_argument(
        "--timeout",
        type=hot.seconds,
        metavar="S",
        default=None if bare else limit,
        help=f"wait this many seconds for the answer (default: {limit:g})",
    )
    if not bare:
        made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _add_naming(made: argparse.ArgumentParser) -> None:
    _add_names(made.add_mutually_exclusive_group())


def _add_names(which: "_Group") -> None:
    which.add_argument("--run", type=_text, metavar="ID", help="the run's id")
    which.add_argument("--scope", type=_text, metavar="BEAD", help="the run's bead")
    which.add_argument("--session", type=_text, metavar="S", help="one of the run's sessions")


def _since(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not 0 <= number <= _MAX_SEQ:
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not the number of an event, 0 or more")
    return number


def _heartbeat(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if number and not _SHORTEST_HEARTBEAT <= number <= _LONGEST_HEARTBEAT:
        allowed = f"0, or {_SHORTEST_HEARTBEAT:g} to {_LONGEST_HEARTBEAT:g} seconds"
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not {allowed}")
    return number


def _path(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return value  # as the operating system gave it, until its symlinks are resolved


def _text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return environment.text(value)


def _budget(value: str) -> int | Literal["none"]:
    if value == "none":
        return "none"
    try:
        return int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is neither a whole number nor 'none'") from None


def _phases(value: str) -> tuple[str, ...]:
    return tuple(_text(name.strip()) for name in value.split(","))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
