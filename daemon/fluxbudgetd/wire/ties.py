"""Words about tied runs: several active runs that have one directory as their project, of which none was named.

A model may read them, so they do not say how another run could be chosen. Imports nothing that takes milliseconds.
"""

from __future__ import annotations

_MOST_LISTED = 5

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence


def listed(runs: Sequence[str]) -> str:
    """Return run ids as a list in words: `a, b`."""
    return ", ".join(runs[:_MOST_LISTED]) + (f", and {len(runs) - _MOST_LISTED} more" if runs[_MOST_LISTED:] else "")


def applies(run: str, tied: Sequence[str]) -> str:
    """Return which of the tied runs applies."""
    return (
        f"{len(tied)} active runs have this directory as their project ({listed(tied)});"
        f" the hard one with the least left applies: {run}"
    )


def started(tied: Sequence[str]) -> str:
    """Return the warning for a new run that is not the only one of its directory."""
    return (
        f"{len(tied)} active runs now have this directory as their project ({listed(tied)}):"
        " commands and sessions there should name one"
    )
