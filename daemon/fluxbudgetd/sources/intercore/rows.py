"""Turn rows into values. SQLite allows any type of value in any column, so invalid values are replaced and reported."""

import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, TypeGuard, get_args

import msgspec

from fluxbudgetd.model import Counts, IcRun, IcStatus, PhaseMove, Usage
from fluxbudgetd.sources.values import agent_name, text, token_counts
from fluxbudgetd.wire.messages import MAX_TOKENS

_SECOND = 1_000_000
_LAST_SECOND = 253_402_300_799  # of the year 9999
_PHASE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MOST_PHASES = 64
_FIRST_PHASE = "brainstorm"
_COMPLEXITIES = range(1, 6)
_PERCENTAGES = range(1, 100)
_USUAL_COMPLEXITY = 3
_USUAL_WARN_PCT = 80
# No count of our own row.
_NOT_OURS = -1


def run_of(row: Sequence[Any], project: str) -> IcRun:
    """Return a row of `runs`. `project` is the database's directory, which replaces an invalid one."""
    key, project_dir, status, phase, phases, scope, goal, complexity, budget, warn_pct, enforce, *times = row
    faults: list[str] = []

    def allowed(name: str, value: object, is_allowed: Callable[[object], bool], instead: Any) -> Any:
        if is_allowed(value):
            return value
        faults.append(f"{name} {text(value)[:80]!r} is not allowed: {instead!r} is used instead")
        return instead

    created, updated, completed = map(moment, times)
    chain = _chain(phases)
    if chain is None and text(phases):
        faults.append("phases is not a list of different names: the default phases are used instead")
    status = allowed("status", text(status), get_args(IcStatus).__contains__, "active")
    if created is None:
        faults.append("created_at is not a time")
    first = created if created is not None else updated or 0
    last = updated if updated is not None else first
    return IcRun(
        id=text(key),
        project_dir=allowed("project_dir", text(project_dir), _is_project, project),
        goal=text(goal),
        status=status,
        phase=allowed("phase", text(phase), is_phase, _FIRST_PHASE if chain is None else chain[0]),
        phases=chain,
        complexity=allowed("complexity", _whole(complexity), _COMPLEXITIES.__contains__, _nearest(complexity)),
        scope=text(scope) or None,
        # `ic` treats 0 as no budget.
        token_budget=None if budget in (None, 0) else allowed("token_budget", _whole(budget), _is_budget, None),
        warn_pct=_USUAL_WARN_PCT
        if warn_pct is None
        else allowed("budget_warn_pct", _whole(warn_pct), _PERCENTAGES.__contains__, _USUAL_WARN_PCT),
        is_hard=allowed("budget_enforce", _whole(enforce or 0), (0, 1).__contains__, 0) == 1,
        created_at=first,
        updated_at=last,
        ended_at=None if status == "active" else last if completed is None else completed,
        faults=tuple(faults),
    )


def move_of(row: Sequence[Any], otherwise: int) -> PhaseMove | None:
    """Return a row of `phase_events`; None if its phase is not allowed. `otherwise` replaces an invalid time."""
    key, from_phase, to_phase, kind, at = row
    if not is_phase(text(to_phase)):
        return None
    time = moment(at)
    return PhaseMove(key, otherwise if time is None else time, text(from_phase), text(to_phase), text(kind))


def usage_of(row: Sequence[Any]) -> tuple[Usage, int]:
    """Return a row of `dispatches`, and how many of its counts were invalid. Its name is not used: it is free text."""
    key, agent, model, input_, output, cache_hits, created, completed = row
    (input_tokens, output_tokens, cache_read), invalid = token_counts((input_, output, cache_hits))
    ended = moment(completed)
    usage = Usage(
        digest(key),
        moment(created) if ended is None else ended,
        agent_name(agent) or "unknown",
        text(model),
        "",
        "",
        input_ is None and output is None,
        input_tokens,
        output_tokens,
        cache_read,
        0,
    )
    return usage, invalid


def own_counts(values: Sequence[Any]) -> Counts:
    """Return the counts of our own row. An invalid one becomes negative, so that it differs from what was written."""
    input_, output, cache_read = (value if isinstance(value, int) else _NOT_OURS for value in values)
    return Counts(1, 0, input_, output, cache_read, 0)


def moment(value: object) -> int | None:
    """Return a time in whole seconds as microseconds; None if it is not one."""
    seconds = _whole(value)
    return seconds * _SECOND if isinstance(seconds, int) and 0 < seconds <= _LAST_SECOND else None


def digest(key: object) -> int:
    """Return a whole number that identifies a text and fits into a signed 64-bit integer."""
    raw = key if isinstance(key, bytes) else text(key).encode()
    return int.from_bytes(blake2b(raw, digest_size=8).digest()) >> 1


def is_phase(value: object) -> TypeGuard[str]:
    """Return True if this can be the name of a phase."""
    return isinstance(value, str) and _PHASE.fullmatch(value) is not None


def _is_budget(value: object) -> bool:
    return isinstance(value, int) and 0 < value <= MAX_TOKENS


def _is_project(value: object) -> bool:
    """Return True for an absolute path, and for the empty path of a portfolio's parent."""
    return isinstance(value, str) and (not value or (value.startswith("/") and "\0" not in value))


def _nearest(value: object) -> int:
    whole = _whole(value)
    return min(max(whole, _COMPLEXITIES[0]), _COMPLEXITIES[-1]) if isinstance(whole, int) else _USUAL_COMPLEXITY


def _whole(value: object) -> object:
    """Return a number without a fraction as an integer, and any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _chain(value: object) -> tuple[str, ...] | None:
    try:
        names = msgspec.json.decode(text(value), type=list[str])
    except msgspec.DecodeError:
        return None
    is_allowed = 0 < len(names) <= _MOST_PHASES and len(set(names)) == len(names) and all(map(is_phase, names))
    return tuple(names) if is_allowed else None
