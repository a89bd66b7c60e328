"""What the screens share: numbers, bars, tables, JSON, and notes on stderr."""

import json
import sys
from collections.abc import Sequence

import msgspec

from fluxbudgetctl.failure import print_stderr
from fluxbudgetd.wire.text import one_line

_EIGHTHS = " ▏▎▍▌▋▊▉█"
#: The colour of each state of a budget, as rich names colours.
COLOURS = {"ok": "green", "warning": "yellow", "exceeded": "bold red", "unlimited": "cyan"}


def is_on_terminal() -> bool:
    """Return True if stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()  # None: closed by the caller (`>&-`)


def tokens(count: int | None) -> str:
    """Return a count of tokens: digits in groups of three on a terminal, plain digits in a pipe."""
    if count is None:
        return "unlimited"
    return f"{count:,}".replace(",", " ") if is_on_terminal() else str(count)


def bar(pct: float, width: int, *, unicode: bool) -> str:
    """Return a bar of `width` cells for 0–100 percent; above 100 it is full."""
    share = min(max(pct, 0.0), 100.0) / 100
    if not unicode:
        full = int(share * width)
        return "#" * full + "." * (width - full)
    eighths = int(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width, "░")


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without lines."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(value: object) -> None:
    """Print one JSON value, in ASCII whatever the terminal's encoding is."""
    print(json.dumps(msgspec.to_builtins(value)))


def note(text: str) -> None:
    """Print a note on stderr."""
    print_stderr(f"fluxbudgetctl: {one_line(text)}")


def note_stale(why: str | None) -> None:
    """Print on stderr that the numbers are the last known ones, unless `why` is empty."""
    if why:
        note(f"last known numbers: {why}")
