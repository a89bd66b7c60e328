"""Percentages, times and events as short text."""

from datetime import datetime

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.short import short
from fluxbudgetd.wire.text import one_line

_TEN_THOUSAND = 10_000
_HOURS_FROM, _DAYS_FROM = 100, 6000  # minutes
_MINUTES_A_DAY = 1440
_WIDEST_PCT = 1000.0

#: The sentence for a kind of event, with places for its data.
_SENTENCES = {
    "run.started": "started with a budget of {token_budget} in {phase}",
    "run.finished": "ended: {status}",
    "run.loosened": "limit loosened: {action}",
    "phase.advanced": "phase {from} → {to}",
    "phase.blocked": "blocked: {refusal}",
    "budget.threshold": "{threshold} % of the budget spent",
    "budget.warning": "warning: {threshold} % of the budget spent",
    "budget.exceeded": "budget exceeded: {spent} of {budget} spent",
    "launch.denied": "launch of {agent} denied",
    "turn.stopped": "stopped: {spent} of {budget} spent",
    "budget.overridden": "exceeded budget overridden: {override}",
    "usage.corrected": "{billing} tokens of session {session} were counted twice",
    "source.degraded": "{source} cannot be read: {state}",
    "source.recovered": "{source} can be read again",
}
_CHANGES = {
    "attached": "session {} attached",
    "detached": "session {} detached",
    "moved_from": "moved from run {}",
    "usage": "{} usage",
    "token_budget": "budget now {}",
    "warn_pct": "warning now at {} %",
    "enforcement": "enforcement now {}",
}


def percent(pct: float | None) -> str:
    """Return a percentage in at most six characters."""
    if pct is None:
        return "-"
    return f"{pct:.1f}%" if pct < _WIDEST_PCT else f">{_WIDEST_PCT - 1:.0f}%"


def duration(minutes: int | None) -> str:
    """Return a duration in at most six characters."""
    if minutes is None:
        return "-"
    if minutes < _HOURS_FROM:
        return f"{minutes} min"
    if minutes < _DAYS_FROM:
        return f"{minutes // 60}.{minutes % 60 // 6} h"
    days = minutes // _MINUTES_A_DAY
    return f"{days} d" if days < _TEN_THOUSAND else "years"


def clock(at: str) -> str:
    """Return the local time of day of a timestamp from the daemon."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        return one_line(at)[:8]


def event_line(event: messages.EventAnswer) -> str:
    """Return one line that says what has happened."""
    data = {name: _value(value) for name, value in event.data.items()}
    if event.kind == "run.changed":
        return one_line(_changed(data))
    if event.kind in _SENTENCES:
        return one_line(_SENTENCES[event.kind].format_map(_Known(data)))
    return one_line(" ".join([event.kind, *(f"{name}={value}" for name, value in data.items())]))


class _Known(dict[str, str]):
    def __missing__(self, _name: str) -> str:
        return "?"


def _changed(data: dict[str, str]) -> str:
    changes = [
        _CHANGES[name].format(value) if name in _CHANGES else f"{name} now {value}" for name, value in data.items()
    ]
    return ", ".join(changes) or "changed"


def _value(value: str | float | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, int) and value >= _TEN_THOUSAND:
        return short(value)
    return str(value)
