"""Admission: whether a session may launch a sub-agent, by its estimate and what its run has left.

Hard enforcement denies a launch that does not fit: its estimate is above what remains (reservations are already
subtracted), or nothing more may be spent. Soft enforcement never denies. Once the budget is exceeded it asks the
person, if there is one to answer, and otherwise lets the launch go on with a warning: where no one can answer, Claude
Code treats a question as a denial.
"""

from typing import Literal, NamedTuple

from fluxbudgetd.config.shown import shortened
from fluxbudgetd.model import Balance, Run
from fluxbudgetd.policy import limits
from fluxbudgetd.policy.estimates import AgentEstimate
from fluxbudgetd.wire import stops
from fluxbudgetd.wire.short import grouped
from fluxbudgetd.wire.text import one_line

_MAX_AGENT = 60
_ASKING_MODES = ("default", "plan", "acceptEdits", "auto")


class Admission(NamedTuple):
    """Whether a sub-agent may be launched. `warn`: it may, and the session is warned.

    `reason` is one line for the model, `message` one for the person; both are empty for `allow`. `reserve`: True if the
    estimate must be reserved.
    """

    decision: Literal["allow", "warn", "ask", "deny"]
    reason: str = ""
    message: str = ""
    reserve: bool = False


def asks_person(permission_mode: str | None) -> bool:
    """Return True if Claude Code passes a hook's question on to the person in this mode."""
    return permission_mode in _ASKING_MODES


def admission(
    run: Run, balance: Balance, estimate: AgentEstimate | None, agent: str, now: int, *, has_person: bool
) -> Admission:
    """Return whether a sub-agent may be launched. `estimate` is in tokens of the run's cost basis; None: unknown.

    `has_person`: a person is there to answer a question. An ended run reserves nothing.
    """
    if run.status != "active":
        return Admission("allow")
    most, remaining = limits.limit(run), balance.remaining
    if most is None or remaining is None:
        return Admission("allow", reserve=True)
    if limits.is_stopped(run, balance, now):
        cause = stops.exhausted(run.id, balance.spent, most, run.cost_basis)
        return Admission("deny", stops.no_launch(cause), f"fluxbudget: {stops.to_continue(run.id)}")
    name = shortened(one_line(agent[: _MAX_AGENT + 1]), _MAX_AGENT)
    numbers = _numbers(run, balance, estimate, most)
    if run.enforcement == "hard":
        needed = 1 if estimate is None else estimate.tokens
        has_room = needed <= remaining or limits.has_time(run, now)
        return Admission("allow", reserve=True) if has_room else _too_large(run, name, numbers)
    return (
        _exceeding(run, name, numbers, has_person=has_person)
        if balance.state == "exceeded"
        else Admission("allow", reserve=True)
    )


def _too_large(run: Run, name: str, numbers: str) -> Admission:
    return Admission(
        "deny",
        f"{name} does not fit into the budget of run {run.id}: {numbers}; finish without it",
        f"fluxbudget: {name} was not launched; to give run {run.id} more, use {stops.ways_to_continue(run.id)}",
    )


def _exceeding(run: Run, name: str, numbers: str, *, has_person: bool) -> Admission:
    reason = f"the budget of run {run.id} is exceeded, and {name} adds to it: {numbers}"
    message = f"fluxbudget: {reason}; raise it with {stops.way_to_raise(run.id)}"
    # A sub-agent that the person allows is reserved when it starts.
    return Admission("ask" if has_person else "warn", reason, message, reserve=not has_person)


def _numbers(run: Run, balance: Balance, estimate: AgentEstimate | None, most: int) -> str:
    estimated = "" if estimate is None else f"{_estimated(run, estimate)}, "
    held = f", {grouped(balance.reserved)} reserved" if balance.reserved else ""
    return f"{estimated}{grouped(balance.spent)} of {grouped(most)} {run.cost_basis} tokens spent{held}"


def _estimated(run: Run, estimate: AgentEstimate) -> str:
    origin = f" (mean of {estimate.sample_size})" if estimate.sample_size else ""
    return f"estimated at {grouped(estimate.tokens)} {run.cost_basis} tokens{origin}"
