"""Lines for a session about its run: that it has none, or that its directory has several.

What the model reads does not say how to choose another run.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fluxbudgetd.wire import ties
from fluxbudgetd.wire.text import one_line

_LONGEST = 300


class Note(NamedTuple):
    """A line for the person, and one for the model."""

    person: str
    model: str


def applies(run: str, tied: Sequence[str], session: str) -> Note:
    """Return which of the tied runs a session has joined."""
    what = f"fluxbudget: {ties.applies(run, tied)}"
    return Note(f"{what}. To choose another: fluxbudgetctl run attach --run ID --session {_short(session)}", what)


def undecided(directory: str, tied: Sequence[str], session: str) -> Note:
    """Return that a session has no run, because its directory has several and none of them is hard."""
    what = (
        f"fluxbudget: {len(tied)} active runs have {_short(directory)} as their project ({ties.listed(tied)}), so this"
        " session belongs to none of them and has no budget"
    )
    return Note(f"{what}. To choose one: fluxbudgetctl run attach --run ID --session {_short(session)}", what)


def without_run(why: str) -> Note:
    """Return that a session has no run, and how to start one."""
    what = f"fluxbudget: {_short(why)}, so this session has no budget. To start one: fluxbudgetctl run start --budget N"
    return Note(what, what)


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
