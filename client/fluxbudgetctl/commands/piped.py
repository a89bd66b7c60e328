"""The piped verbs in argparse: for `--help`, mistakes and unusual spellings, and if the daemon does not answer."""

import argparse
import os
import time

from fluxbudgetctl import arguments, environment, fallback, pipe
from fluxbudgetctl.arguments import FailingParser, Options, Subcommands, add_command, add_naming
from fluxbudgetctl.commands import hook_settings
from fluxbudgetctl.delivery import deliver
from fluxbudgetctl.failure import Failure, failure_of
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import unfold

_DESCRIPTIONS = {
    "remaining": "print the tokens that are left, as one integer (no run or no budget: 0, exit 3)",
    "env": "print 'export FLUX_BUDGET_REMAINING=N' for eval (exhausted: N is 1; no run or no budget: unset, exit 3)",
    "check": "check whether the run may go on: print 'ok', or the reason and exit 1, every time",
    "advance": "check the budget, then move the run to its next phase: 'advanced|P|Q'",
    "ping": "check whether the daemon answers",
    "hook": "answer a Claude Code hook: JSON on stdin, JSON on stdout; on any error print nothing and exit 0",
    "statusline": "print one line for Claude Code's status line",
    "numbers": "print a run's numbers as KEY=VALUE lines, for shell scripts",
    "tokens": "print as JSON what a session's agents have used, or with --agent alone what an agent costs on average",
    "defaults": "print one integer: the budget of a complexity, or with --phase what a phase is expected to cost",
}
_PRINT_JSON = ("remaining", "check", "advance", "ping", "numbers", "defaults")
_NAME_NO_RUN = ("ping", "tokens", "defaults")

#: The options that are sent as words of the command line, with their flags.
_VALUES = {
    "run": "--run",
    "scope": "--scope",
    "session": "--session",
    "default": "--default",
    "from_phase": "--from",
    "to_phase": "--to",
    "override": "--override",
    "width": "--width",
    "agent": "--agent",
    "model": "--model",
    "complexity": "--complexity",
    "phase": "--phase",
}
_SWITCHES = {"json": "--json", "require": "--require", "no_colour": "--no-colour"}


def main(words: list[str], call: pipe.Call | None, failure: Failure | None) -> int:
    """Carry out a command line that the pipe could not, and return the exit code.

    `call` is the pipe's attempt, if there was one, and `failure` how it failed; None if the daemon or
    `pipe.time_limit` left the command line to argparse.
    """
    root = FailingParser(prog="fluxbudgetctl", allow_abbrev=False)
    add(root.add_subparsers(required=True))
    options = root.parse_args(words, Options(call=call, failure=failure))
    try:
        return int(options.run_command(options))
    except Failure as exc:
        return exc.report()


def add(commands: Subcommands) -> None:
    """Add the commands."""
    for verb in pipe.VERBS:
        _add(commands, verb)


def _add(commands: Subcommands, verb: str) -> None:
    def run(options: Options) -> int:
        if getattr(options, "guard", False) and not options.print_settings:
            raise Failure("--guard belongs to --print-settings", "see 'fluxbudgetctl hook --help'", codes.USAGE)
        if verb == "tokens" and options.session is None and options.agent is None:
            raise Failure("neither --session nor --agent is given", "see 'fluxbudgetctl tokens --help'", codes.USAGE)
        if getattr(options, "print_settings", False):
            return hook_settings.print_settings(guard=options.guard)
        return _run(verb, options)

    parser = add_command(commands, verb, _DESCRIPTIONS[verb], run, timeout=pipe.VERBS[verb], json=False)
    if verb not in _NAME_NO_RUN:
        add_naming(parser)
    if verb in _PRINT_JSON:
        parser.add_argument("--json", action="store_true", help="print a JSON object")
    if verb in _FLAGS:
        _FLAGS[verb](parser)


def _run(verb: str, options: Options) -> int:
    before, failure = options.call, options.failure
    # Parsing does not count against the time limit: the plain form gets all of it, unless an attempt has failed.
    started_ns = time.monotonic_ns() if failure is None else before.started_ns
    call = pipe.Call([verb, *_words(options)], options.timeout, started_ns, before and before.stdin)
    if failure is None:
        outcome = pipe.run(call)
        if isinstance(outcome, pipe.Answer):
            return deliver(outcome, call)
        # An older daemon, which does not handle these words, may still know the typed request. `advance` needs it for a
        # run that only `ic` can move.
        failure = outcome or failure_of({"code": "unknown_op"})
    return fallback.run(call, options, failure)


def _words(options: Options) -> list[str]:
    """Return the options as words in their plain form."""
    given = {**dict.fromkeys((*_VALUES, *_SWITCHES)), **vars(options)}
    values = [f"{flag}={_raw(given[name])}" for name, flag in _VALUES.items() if given[name] is not None]
    return values + [flag for name, flag in _SWITCHES.items() if given[name]]


def _raw(value: str | int) -> str:
    """Return an argument as it was given: the reverse of `environment.text`."""
    return os.fsdecode(unfold(value)) if isinstance(value, str) else str(value)


def _add_default(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--default",
        type=int,
        metavar="N",
        help="print N if there is no run or no budget (exit 3), or if the daemon does not answer (exit 0)",
    )


def _add_override(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--override",
        type=arguments.text,
        metavar="REASON",
        help="continue although the budget is exceeded, unless enforcement is hard (default: $CLAVAIN_SKIP_BUDGET)",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_override(parser)
    parser.add_argument("--require", action="store_true", help="no run is a refusal: exit 1 instead of 3")


def _add_phases(parser: argparse.ArgumentParser) -> None:
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
    _add_override(parser)


def _add_print_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-settings", action="store_true", help="print what to merge into Claude Code's settings.json"
    )
    parser.add_argument(
        "--guard",
        action="store_true",
        help="with --print-settings: add permission rules that ask before limits, or their files, are changed",
    )


def _add_appearance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--width", type=environment.cells, metavar="N", help="at most N cells (default: $COLUMNS, else no limit)"
    )
    parser.add_argument("--no-colour", "--no-color", action="store_true", help="no colours, as with $NO_COLOR")


def _add_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", type=arguments.text, metavar="S", help="the session's id")
    parser.add_argument(
        "--agent", type=arguments.text, metavar="A", help="only this agent, with or without the prefix interflux:"
    )
    parser.add_argument(
        "--model",
        type=arguments.text,
        metavar="M",
        help="without --session: use the history of this model (default: claude-opus-4-6)",
    )


def _add_number(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--complexity",
        type=arguments.integer,
        metavar="N",
        help="1 to 5; any other number counts as 5 (default: that of new runs)",
    )
    group.add_argument("--phase", type=arguments.text, metavar="P", help="the phase's name")


_FLAGS = {
    "remaining": _add_default,
    "check": _add_check,
    "advance": _add_phases,
    "hook": _add_print_settings,
    "statusline": _add_appearance,
    "tokens": _add_agent,
    "defaults": _add_number,
}
