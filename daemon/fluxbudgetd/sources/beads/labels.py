"""Parse what `bd` prints, and the labels in it. Nothing in it is trusted.

A label `DIM:VALUE` is the bead's state in the dimension DIM.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from fluxbudgetd.config.shown import shortened
from fluxbudgetd.model import Bead
from fluxbudgetd.sources.values import text
from fluxbudgetd.wire.messages import MAX_TOKENS
from fluxbudgetd.wire.text import one_line

#: The label that is written.
SPENT = "tokens_spent"
# An option would begin with a hyphen.
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,19}")
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_COMPLEXITIES = range(1, 6)
_MOST_COMPLEX = 5


class _States(msgspec.Struct):
    """The answer to `state list`. A bead without labels may have null instead of a map."""

    issue_id: str
    states: dict[str, Any] | None = None


class _Labels(msgspec.Struct):
    labels: list[Any] | None = None


def is_bead_id(name: str) -> bool:
    """Return True if this can be the full id of a bead."""
    return _ID.fullmatch(name) is not None


def bead_of(output: bytes, name: str) -> Bead | None:
    """Return the bead that `state list` has printed; None if it is not the named one. Raises `ValueError`."""
    answer = msgspec.json.decode(output, type=_States)
    if answer.issue_id != name:
        return None
    faults: list[str] = []
    states = {dimension: text(value).strip() for dimension, value in (answer.states or {}).items()}
    return Bead(
        id=name,
        token_budget=_budget(states.get("token_budget"), faults),
        complexity=_complexity(states.get("complexity"), faults),
        phase=_name("phase", states.get("phase"), faults),
        run=_name("ic_run_id", states.get("ic_run_id"), faults),
        faults=tuple(faults),
    )


def labels_of(output: bytes) -> list[str]:
    """Return the labels that `label list` has printed. Raises `ValueError`."""
    found = msgspec.json.decode(output, type=list[Any] | _Labels | None)
    labels = found.labels if isinstance(found, _Labels) else found
    return [label for label in labels or () if isinstance(label, str)]


def in_dimension(labels: Iterable[str], dimension: str) -> list[str]:
    """Return the labels of one dimension; there may be several."""
    return [label for label in labels if label.startswith(f"{dimension}:")]


def _budget(value: str | None, faults: list[str]) -> int | None:
    if value is None:
        return None
    if not value:
        return 0
    if not _NUMBER.fullmatch(value) or int(value) > MAX_TOKENS:
        faults.append(f"token_budget {_shown(value)} is not a whole number of tokens and is ignored")
        return None
    return int(value)


def _complexity(value: str | None, faults: list[str]) -> int | None:
    if not value:
        return None
    if _NUMBER.fullmatch(value) and int(value) in _COMPLEXITIES:
        return int(value)
    faults.append(f"complexity {_shown(value)} counts as {_MOST_COMPLEX}")
    return _MOST_COMPLEX


def _name(dimension: str, value: str | None, faults: list[str]) -> str | None:
    if not value:
        return None
    if _NAME.fullmatch(value):
        return value
    faults.append(f"{dimension} {_shown(value)} is not a name and is ignored")
    return None


def _shown(value: str) -> str:
    return f'"{shortened(one_line(value[:200]))}"'
