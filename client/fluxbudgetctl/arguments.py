"""The building blocks of the command line: commands, argument types, and flags that several commands share."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NoReturn

from fluxbudgetctl import environment, pipe
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line

DEFAULT_SECONDS = 1.0
# The least and the largest integer of MessagePack. What the daemon accepts is less.
_INTEGERS = -(2**63), 2**64 - 1

Options = argparse.Namespace
Parser = argparse.ArgumentParser


class FailingParser(Parser):
    """A parser that reports a usage error like every other failure: one line and a hint."""

    def error(self, message: str) -> NoReturn:
        """Exit with the usage exit code."""
        hint = f"see '{self.prog} --help'"
        raise SystemExit(Failure(message, hint, codes.USAGE).report())


# argparse gives these classes no public names.
if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[FailingParser]  # noqa: SLF001
else:
    Subcommands = argparse._SubParsersAction  # noqa: SLF001  generic only for type checkers
Group = argparse._MutuallyExclusiveGroup  # noqa: SLF001


def add_command(
    commands: Subcommands,
    name: str,
    description: str,
    run: Callable[[Options], int],
    *,
    timeout: float | None = DEFAULT_SECONDS,
    json: bool = True,
) -> Parser:
    """Add a command and return its parser.

    `run` carries the command out and returns the exit code. `timeout` is the default of `--timeout` in seconds; with
    None the command has no such flag. With `json` it has `--json`.
    """
    parser: Parser = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    parser.set_defaults(run_command=run)
    if timeout is not None:
        add_timeout(parser, timeout, default=timeout)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_group(commands: Subcommands, name: str, description: str) -> Subcommands:
    """Add a command that only has subcommands; return where to add them."""
    parser = commands.add_parser(name, help=description, description=description, allow_abbrev=False)
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_timeout(parser: Parser, shown: float, *, default: float | None) -> None:
    """Add `--timeout`. `shown` is what the help calls the default, which may depend on the command."""
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="S",
        default=default,
        help=f"seconds to wait for the answer (default: {shown:g})",
    )


def add_naming(parser: Parser) -> None:
    """Add the flags that name a run, of which at most one may be given."""
    add_names(parser.add_mutually_exclusive_group())


def add_names(group: Group) -> None:
    """Add the flags that name a run to a group of exclusive flags."""
    group.add_argument("--run", type=text, metavar="ID", help="the run's id")
    group.add_argument("--scope", type=text, metavar="BEAD", help="the bead the run is about")
    group.add_argument("--session", type=text, metavar="S", help="a session attached to the run")


def add_transcript(parser: Parser) -> None:
    """Add `--transcript`, which belongs to `--session`."""
    parser.add_argument(
        "--transcript", type=path, metavar="FILE", help="the session's transcript (default: found by the session's id)"
    )


def add_model(parser: Parser, default: str) -> None:
    """Add the flags that select the history that estimates are based on. `default` is the model that help names."""
    parser.add_argument("--model", type=text, metavar="M", help=f"use the history of this model (default: {default})")
    parser.add_argument("--slicing", action="store_true", help="agents get slices of the document")


def seconds(value: str) -> float:
    """Return a time limit in seconds, above 0 and at most an hour."""
    try:
        number = float(value)
    except ValueError:
        number = 0
    if not 0 < number <= pipe.MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds above 0 (at most {pipe.MAX_SECONDS:g})")
    return number


def path(value: str) -> str:
    """Return a path as the operating system gave it; the protocol's text is made after symlinks are resolved."""
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return value


def text(value: str) -> str:
    """Return an argument as the protocol's text."""
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return environment.text(value)


def budget(value: str) -> int | Literal["none"]:
    """Return a budget in tokens, or `none`."""
    if value == "none":
        return "none"
    try:
        return _integer(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{one_line(value)!r} is neither 'none' nor a whole number below 2^63"
        ) from None


def whole_number(value: str) -> int:
    """Return a whole number above 0."""
    try:
        number = _integer(value)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not a whole number above 0 and below 2^63")
    return number


def integer(value: str) -> int:
    """Return any integer that a request can carry."""
    try:
        return _integer(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not a whole number") from None


def _integer(value: str) -> int:
    """Return an integer; raises `ValueError` if it is not one, or if the protocol cannot carry it."""
    number = int(value)
    if not _INTEGERS[0] <= number <= _INTEGERS[1]:
        raise ValueError(value)
    return number


def phases(value: str) -> tuple[str, ...]:
    """Return the phases of a comma-separated list."""
    return tuple(text(name.strip()) for name in value.split(","))
