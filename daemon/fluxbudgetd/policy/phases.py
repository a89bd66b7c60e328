"""A sprint's phases: which macro-stage each belongs to, what each may cost, what it is estimated at, what comes next.

Tokens of a completed phase count as measured, or, until anything has been measured, as the phase's estimate
(`provisional`). Never both: an estimate ends with the first token of the phase itself, or of a session that worked for
the run while the phase lasted. (A session's own row comes last and covers all of its phases, so any token of such a
session may already include this phase.)
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from fluxbudgetd.config.schema import PhaseEstimates, Stages
from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import PhaseRecord, Run, Stint
from fluxbudgetd.wire.messages import CostBasis, EstimateSource, PhaseCalibration

MACRO_STAGES = ("discover", "design", "build", "ship", "reflect", "done")
#: The phases of a run's own chain that belong to no macro-stage.
OTHER_STAGE = "other"

#: A phase's calibration takes precedence over the table if it is based on at least this many runs.
MIN_MEASURED_RUNS = 3

# Clavain's nine phases, and the additional ones of its shell library and of intercore's chains.
_STAGE_OF_PHASE = {
    "brainstorm": "discover",
    "goal-formed": "discover",
    "brainstorm-reviewed": "design",
    "strategized": "design",
    "strategy-reviewed": "design",
    "planned": "design",
    "plan-reviewed": "design",
    "executing": "build",
    "review": "ship",
    "polish": "ship",
    "shipping": "ship",
    "reflect": "reflect",
    "done": "done",
}


class PhaseEstimate(NamedTuple):
    """What a phase is expected to cost, in tokens of a cost basis, and where that comes from."""

    tokens: int
    source: EstimateSource
    sample_size: int


def macro_stage(phase: str) -> str:
    """Return the macro-stage of a phase; a phase of a run's own chain, known to no stage, is `other`."""
    return _STAGE_OF_PHASE.get(phase, OTHER_STAGE)


def allocations(stages: Stages, budget: int) -> dict[str, int]:
    """Return what each macro-stage may cost, in tokens: its share of the budget, at least its floor.

    When that comes to more than the budget, each is scaled down by budget / sum, rounded down: together they never
    exceed the budget. The stage `done` has no share.
    """
    named = {name: getattr(stages, name) for name in stages.__struct_fields__}
    wanted = {name: max(budget * stage.share // 100, stage.floor) for name, stage in named.items()}
    total = sum(wanted.values())
    if total <= budget:
        return wanted
    return {name: tokens * budget // total for name, tokens in wanted.items()}


def estimate(
    phase: str, basis: CostBasis, table: PhaseEstimates, *calibrations: Mapping[str, PhaseCalibration]
) -> PhaseEstimate:
    """Return a phase's estimate: the mean of the first calibration with enough runs of it, otherwise the table's."""
    for calibrated in calibrations:
        known = calibrated.get(phase)
        if known is not None and known.sample_size >= MIN_MEASURED_RUNS:
            spread = known.billing if basis == "billing" else known.total
            return PhaseEstimate(spread.mean, "calibration", known.sample_size)
    return PhaseEstimate(table.of(phase), "table", 0)


def provisional(
    completed: Iterable[PhaseRecord], measured: Collection[str], stints: Sequence[Stint]
) -> tuple[PhaseRecord, ...]:
    """Return the completed phases that still count with their estimates.

    `measured` are the phases with measured tokens, `stints` the times that sessions have worked for the run. A phase
    that was completed several times, because the run went back, counts once: its latest estimate.
    """
    latest: dict[str, PhaseRecord] = {}
    for record in completed:
        is_measured = record.phase in measured or any(stint.measured and _overlap(stint, record) for stint in stints)
        if not is_measured and (record.estimate or record.phase not in latest):
            latest[record.phase] = record
    return tuple(sorted(latest.values(), key=lambda record: record.since))


def stale_refusal(run: Run, phase: str) -> str | None:
    """Return `stale_phase|PHASE|…` if the run is not in the phase that the caller expects, otherwise None."""
    if phase == run.phase:
        return None
    if phase not in run.phases:
        raise BadInputError(
            f"run {run.id} has no phase {phase!r}", f"its phases are {', '.join(run.phases)}; it is in {run.phase}"
        )
    if run.phases.index(phase) < run.phases.index(run.phase):
        return f"stale_phase|{phase}|Phase already advanced to {run.phase}"
    return f"stale_phase|{phase}|Phase not reached yet, still in {run.phase}"


def next_phase(run: Run, wanted: str | None) -> str:
    """Return the phase that a run moves on to: the next one, or a later one that was named.

    Raises `BadInputError` for a phase that is not ahead, `ConflictError` when the run has ended.
    """
    if run.status != "active":
        raise ConflictError(f"run {run.id} is {run.status}", "only an active run can move on")
    ahead = run.phases[run.phases.index(run.phase) + 1 :]
    if not ahead:
        raise BadInputError(
            f"{run.phase} is the last phase of run {run.id}", f"end it with 'fluxbudgetctl run finish --run {run.id}'"
        )
    if wanted is None:
        return ahead[0]
    if wanted not in ahead:
        raise BadInputError(f"run {run.id} cannot move from {run.phase} to {wanted!r}", f"ahead are {', '.join(ahead)}")
    return wanted


def require_next(run: Run, wanted: str | None) -> None:
    """Raise an error unless the named phase is the next one: intercore moves a run to no other.

    Raises `BadInputError` or `ConflictError`.
    """
    following = next_phase(run, None)
    if wanted not in (None, following):
        raise BadInputError(
            f"intercore moves run {run.id} only to its next phase, {following}, not to {wanted!r}", "leave out --to"
        )


def _overlap(stint: Stint, record: PhaseRecord) -> bool:
    return stint.since < record.until and (stint.until is None or stint.until > record.since)
