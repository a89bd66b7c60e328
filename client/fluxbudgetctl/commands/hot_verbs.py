"""The flags and help of the hot verbs, which `hot` carries out."""

from fluxbudgetctl import environment, hot
from fluxbudgetctl.arguments import Options, Subcommands, add_command, add_naming, add_override, add_timeout
from fluxbudgetctl.commands import hook_settings

_DESCRIPTIONS = {
    "remaining": "print the tokens that are left, as one integer (no run or no budget: 0, exit 3)",
    "env": "print 'export FLUX_BUDGET_REMAINING=N' for eval (exhausted: N is 1; no run or no budget: nothing, exit 3)",
    "check": "check whether the run may go on: print 'ok', or the reason and exit 1, every time",
    "ping": "check whether the daemon answers",
    "hook": "answer a Claude Code hook: JSON on stdin, JSON on stdout; on any error print nothing and exit 0",
    "statusline": "print one line for Claude Code's status line",
}


def add(commands: Subcommands) -> None:
    """Add the commands."""
    for verb in hot.VERBS:
        _add(commands, verb)


def _add(commands: Subcommands, verb: str) -> None:
    def run(options: Options) -> int:
        if getattr(options, "print_settings", False):
            return hook_settings.print_settings()
        return hot.run(_hot_options(verb, options))

    flags = hot.VERBS[verb]
    parser = add_command(commands, verb, _DESCRIPTIONS[verb], run, timeout=None, json=False)
    add_timeout(parser, hot.limit(hot.Options(verb)), default=None)
    if hot.NAMING_FLAGS[0] in flags:
        add_naming(parser)
    if "--json" in flags:
        parser.add_argument("--json", action="store_true", help="print a JSON object")
    if "--override" in flags:
        add_override(parser)
    if "--default" in flags:
        parser.add_argument(
            "--default", type=int, metavar="N", help="print N and exit 0 when the daemon does not answer"
        )
    if "--width" in flags:
        parser.add_argument(
            "--width", type=environment.cells, metavar="N", help="at most N cells (default: $COLUMNS, else no limit)"
        )
        parser.add_argument("--no-colour", "--no-color", action="store_true", help="no colours, as with $NO_COLOR")
    if verb == "hook":
        parser.add_argument(
            "--print-settings", action="store_true", help="print what to merge into Claude Code's settings.json"
        )


def _hot_options(verb: str, options: Options) -> hot.Options:
    return hot.Options(
        verb,
        (getattr(options, "run", None), getattr(options, "scope", None), getattr(options, "session", None)),
        timeout=options.timeout,
        switches=[name for name in ("json", "no_colour") if getattr(options, name, False)],
        default=getattr(options, "default", None),
        override=getattr(options, "override", None),
        width=getattr(options, "width", None),
    )
