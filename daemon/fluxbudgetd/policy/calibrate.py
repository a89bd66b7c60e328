"""Calibration from history: what phases and agents actually cost, and what slicing actually saves.

A phase is measured by a run when the run has completed it (or has ended in it, as done) with measured tokens. Means are
rounded half away from zero; p50 and p90 are the nearest rank, so they are actual costs.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from statistics import median

from fluxbudgetd.model import AgentRow, Counts, Timeline, Triage
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.report import is_since
from fluxbudgetd.wire.messages import MAX_TOKENS, PhaseCalibration, SlicingCalibration, Spread

#: Propose no multiplier from fewer sliced runs.
MIN_SLICED_RUNS = 10
#: Keep a multiplier that is off by no more than this.
TOLERANCE = Fraction(20, 100)
# Inside the range that the configuration allows.
_LEAST, _MOST = 0.01, 10.0


def spread(values: Iterable[int]) -> Spread:
    """Return mean, p50 and p90 of at least one value."""
    ordered = sorted(values)
    count = len(ordered)
    return Spread(
        mean=estimates.mean(sum(ordered), count),
        p50=ordered[rank(count, 50) - 1],
        p90=ordered[rank(count, 90) - 1],
    )


def rank(count: int, percentile: int) -> int:
    """Return the nearest rank (1 to count) of a percentile among `count` ordered values."""
    return max(1, -(-count * percentile // 100))


def measured_phases(timeline: Timeline, sums: Mapping[str, Counts]) -> dict[str, Counts]:
    """Return a run's completed phases with what was measured of each; `sums` is its usage by phase."""
    completed = {record.phase for record in timeline.completed}
    if timeline.run.status == "done":
        # Only late numbers can still arrive, so every phase that a row names is complete.
        completed |= sums.keys()
    return {phase: counts for phase, counts in sums.items() if phase in completed and counts.total}


def phases(runs: Iterable[Mapping[str, Counts]]) -> dict[str, PhaseCalibration]:
    """Return, per phase, what runs have spent in it."""
    found: dict[str, list[Counts]] = {}
    for measured in runs:
        for phase, counts in measured.items():
            found.setdefault(phase, []).append(counts)
    return {
        phase: PhaseCalibration(
            billing=spread(min(counts.billing, MAX_TOKENS) for counts in sample),
            total=spread(min(counts.total, MAX_TOKENS) for counts in sample),
            sample_size=len(sample),
        )
        for phase, sample in sorted(found.items())
    }


def sliced_agents(triages: Iterable[Triage]) -> set[str]:
    """Return the plain names of the agents that have been launched with a slice."""
    return {
        estimates.plain_name(line.name)
        for triage in triages
        for line in triage.agents
        if line.sliced and line.action == "Selected"
    }


def slicing(triages: Sequence[Triage], rows: Iterable[AgentRow], multiplier: float) -> SlicingCalibration:
    """Return what slicing actually saves: each sliced run against the median of the same agent's full runs.

    A row is a sliced run if the latest earlier triage in its session that launched the agent gave it a slice; any other
    row of the agent is a full run. A new multiplier is proposed if there are enough sliced runs and the median of their
    ratios differs from the current multiplier by more than the tolerance.
    """
    sliced, full = _split(triages, rows)
    ratios = [
        Fraction(cost, 1) / middle
        for agent, costs in sliced.items()
        if (middle := Fraction(median(full.get(agent, [0])))) > 0
        for cost in costs
    ]
    found = Fraction(median(ratios)) if ratios else None
    current = Fraction(repr(multiplier))
    proposed = None
    if found is not None and len(ratios) >= MIN_SLICED_RUNS and abs(found - current) > TOLERANCE * current:
        proposed = min(max(round(float(found), 2), _LEAST), _MOST)
    return SlicingCalibration(
        multiplier=proposed,
        median=None if found is None else round(float(found), 4),
        sliced_runs=len(ratios),
        full_runs=sum(len(full[agent]) for agent in sliced if agent in full),
        was=multiplier,
    )


def _split(triages: Sequence[Triage], rows: Iterable[AgentRow]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return the costs of each agent's sliced runs, and of its full runs."""
    launches: dict[tuple[str, str], list[tuple[Triage, bool]]] = {}
    for triage in sorted(triages, key=lambda triage: triage.at):
        for line in triage.agents:
            if triage.session is not None and line.action == "Selected":
                key = triage.session, estimates.plain_name(line.name)
                launches.setdefault(key, []).append((triage, line.sliced))
    sliced: dict[str, list[int]] = {}
    full: dict[str, list[int]] = {}
    for row in rows:
        if row.billing > 0:
            name = estimates.plain_name(row.agent)
            before = [cut for triage, cut in launches.get((row.session, name), ()) if is_since(row, triage)]
            (sliced if before and before[-1] else full).setdefault(name, []).append(row.billing)
    return sliced, full
