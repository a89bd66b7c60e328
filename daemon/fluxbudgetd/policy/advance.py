"""Whether a run may go on: the check, and the step from one phase to the next.

Level-triggered: the answer depends only on the current balance, so every check of an exceeded budget is refused, not
only the first. Soft enforcement accepts an override; hard enforcement accepts none.
"""

from typing import NamedTuple

from fluxbudgetd.model import Balance, EventData, PhaseRecord, Run
from fluxbudgetd.policy import limits, phases

_MAX_REASON = 1000


class Verdict(NamedTuple):
    """`refusal` is the line that says why not (None: the run may go on). `override` is the reason, if it was needed."""

    refusal: str | None
    override: str | None = None
    note: str = ""

    @property
    def allowed(self) -> bool:
        """Return True if the run may go on."""
        return self.refusal is None


def checked(run: Run, balance: Balance, override: str | None, now: int) -> Verdict:
    """Return whether a run may go on with this balance.

    `override` is the reason to go on although the budget is exceeded. It counts only then, and only under soft
    enforcement.
    """
    refusal = limits.refusal(run, balance, now)
    override = reason(override)
    if refusal is None or override is None:
        return Verdict(refusal)
    if run.enforcement == "hard":
        return Verdict(refusal, note=f"run {run.id} has hard enforcement: overrides are not accepted")
    return Verdict(None, override)


def advanced(run: Run, balance: Balance, phase: str, override: str | None, now: int) -> Verdict:
    """Return whether a run may leave a phase. No override helps if the run is in another one."""
    stale = phases.stale_refusal(run, phase)
    return Verdict(stale) if stale is not None else checked(run, balance, override, now)


def reason(text: str | None) -> str | None:
    """Return a reason, truncated to the stored length; None for a blank one."""
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


def advanced_data(phase: str, record: PhaseRecord, provisional: int) -> EventData:
    """Return the data of the event that a run has left a phase for this one."""
    return {
        "from": record.phase,
        "to": phase,
        "input": record.measured.input,
        "output": record.measured.output,
        "estimate": record.estimate,
        "provisional": provisional,
        "override": record.override,
    }
