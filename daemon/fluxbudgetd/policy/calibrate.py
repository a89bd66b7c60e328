"""Calibration from history: what phases and agents actually cost, and what slicing actually saves.

Slicing is measured by reviews, because the agents of one review read slices of the same document: their costs are not
independent. A review's ratio is the median, over its sliced sub-agents, of their cost ÷ the median of the same agent's
unsliced samples. The proposed multiplier is the median of the reviews' ratios.

A phase is measured by a run when the run has completed it (or has ended in it, as done) with measured tokens. Means are
rounded half away from zero; p50 and p90 are the nearest rank, so they are actual costs.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from statistics import median

from fluxbudgetd.model import Counts, Sample, Timeline
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.wire.messages import MAX_TOKENS, AgentCalibration, PhaseCalibration, SlicingCalibration, Spread

#: Propose no multiplier from fewer reviews with sliced agents.
MIN_SLICED_REVIEWS = 10
#: A calibration must fit into a frame, and into a file of limited size.
MOST_AGENTS = 1000
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


def agents(samples: Iterable[Sample]) -> dict[str, AgentCalibration]:
    """Return, per agent, what its unsliced samples of reviews have cost; of too many, the agents with most samples."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.sliced and sample.round == "review":
            found.setdefault(sample.agent, []).append(sample)
    most = sorted(found, key=lambda agent: (-len(found[agent]), agent))[:MOST_AGENTS]
    return {
        agent: AgentCalibration(
            billing=spread(min(sample.billing, MAX_TOKENS) for sample in found[agent]),
            total=spread(min(sample.total, MAX_TOKENS) for sample in found[agent]),
            sample_size=len(found[agent]),
        )
        for agent in sorted(most)
    }


def slicing(samples: Iterable[Sample], reviewed: ReviewAgents, multiplier: float) -> SlicingCalibration:
    """Return what slicing saves, in billing tokens. `multiplier` is the configured one.

    A new multiplier is proposed if there are enough reviews with sliced agents, and what they show differs from the
    configured one by more than the tolerance. Sub-agents without an unsliced sample of the same agent do not count.
    """
    sliced: list[Sample] = []
    full: dict[str, list[int]] = {}
    for sample in samples:
        if sample.billing > 0 and sample.round == "review":
            if sample.sliced:
                sliced.append(sample)
            else:
                full.setdefault(sample.agent, []).append(sample.billing)
    middle = {agent: Fraction(median(costs)) for agent, costs in full.items()}
    by_review: dict[str, list[Fraction]] = {}
    compared: dict[str, int] = {}
    for sample in sliced:
        agent = reviewed.selecting(sample)
        if agent is not None and sample.agent in middle:
            by_review.setdefault(agent.triage.id, []).append(sample.billing / middle[sample.agent])
            compared[sample.agent] = len(full[sample.agent])
    found = Fraction(median(map(median, by_review.values()))) if by_review else None
    proposed = None
    if found is not None and len(by_review) >= MIN_SLICED_REVIEWS and _differs(found, multiplier):
        proposed = min(max(round(float(found), 2), _LEAST), _MOST)
    return SlicingCalibration(
        multiplier=proposed,
        median=None if found is None else round(float(found), 4),
        sliced_reviews=len(by_review),
        sliced_runs=sum(map(len, by_review.values())),
        full_runs=sum(compared.values()),
        was=multiplier,
    )


def news(slicing: SlicingCalibration, in_use: float, announced: float | None) -> float | None:
    """Return the multiplier that writing this calibration would put into effect, if it should be announced.

    It is announced if there are enough reviews, and it differs by more than the tolerance from the one in use and from
    the one that was announced last (None: none was).
    """
    after = slicing.was if slicing.multiplier is None else slicing.multiplier
    known = [in_use] if announced is None else [in_use, announced]
    is_new = all(_differs(Fraction(repr(after)), one) for one in known)
    return after if is_new and slicing.sliced_reviews >= MIN_SLICED_REVIEWS else None


def _differs(found: Fraction, multiplier: float) -> bool:
    # A multiplier counts as it is written in decimals.
    current = Fraction(repr(multiplier))
    return abs(found - current) > TOLERANCE * current
