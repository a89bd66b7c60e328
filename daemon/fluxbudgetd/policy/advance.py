"""May a run go on? The check, and the step from one phase to the next.

Level-triggered: the answer depends on where the run stands now, so the second question about an exceeded budget is
refused like the first. An override lets a run with soft enforcement pass; under hard enforcement nothing does.
"""

from typing import NamedTuple

from fluxbudgetd.model import Balance, EventData, Run
from fluxbudgetd.policy import budget, phases

_MAX_REASON = 1000


class Verdict(NamedTuple):
    """`refusal` is the line that says why not (None: the run may go on). `override` is the reason that was needed."""

    refusal: str | None
    override: str | None = None
    note: str = ""

    @property
    def allowed(self) -> bool:
        """Return True if the run may go on."""
        return self.refusal is None


def checked(run: Run, balance: Balance, override: str | None) -> Verdict:
    """Return whether a run may go on with what it has spent.

    `override` is the reason for going on all the same; it counts only when it is needed, and only under soft
    enforcement.
    """
    refusal = budget.refusal(run, balance)
    override = reason(override)
    if refusal is None or override is None:
        return Verdict(refusal)
    if run.enforcement == "hard":
        return Verdict(refusal, note=f"run {run.id} is enforced hard: no override passes; raise its budget instead")
    return Verdict(None, override)


def advanced(run: Run, balance: Balance, phase: str, override: str | None) -> Verdict:
    """Return whether a run may leave a phase. Being in another one cannot be overridden."""
    stale = phases.stale_refusal(run, phase)
    return Verdict(stale) if stale is not None else checked(run, balance, override)


def reason(text: str | None) -> str | None:
    """Return a reason, cut to the length that is kept; None for a blank one."""
    return text[:_MAX_REASON] if text and not text.isspace() else None


def refusal_data(run: Run, balance: Balance, verdict: Verdict, by: str) -> EventData:
    """Return the data of a refusal's event."""
    return {
        "by": by,
        "reason": (verdict.refusal or "").split("|")[0],
        "refusal": verdict.refusal,
        "phase": run.phase,
        "spent": balance.spent,
        "budget": balance.budget,
    }


def override_data(run: Run, balance: Balance, verdict: Verdict, by: str) -> EventData:
    """Return the data of an override's event."""
    return {
        "by": by,
        "override": verdict.override,
        "phase": run.phase,
        "spent": balance.spent,
        "budget": balance.budget,
    }
