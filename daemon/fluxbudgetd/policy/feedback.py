"""How past reviews went, by input type: their costs and budgets, and what became of the decisions."""

from collections.abc import Iterable, Mapping, Sequence

from fluxbudgetd.model import Sample, Triage
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.launches import Launches
from fluxbudgetd.wire.messages import MAX_TOKENS, ReviewCalibration

#: The samples of one review's agents, by plain name.
_Samples = Mapping[str, Sequence[Sample]]


def of_reviews(
    triages: Iterable[Triage], samples: Iterable[Sample], launches: Launches
) -> dict[str, ReviewCalibration]:
    """Return how the reviews of each input type went.

    A sub-agent belongs to the latest earlier review that named its agent. A triage of which no agent ran is left out:
    usually it was repeated before the review began.
    """
    by_review: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        launch = launches.naming(sample)
        if launch is not None:
            by_review.setdefault(launch.triage.id, {}).setdefault(sample.agent, []).append(sample)
    by_type: dict[str, list[tuple[Triage, _Samples]]] = {}
    for triage in triages:
        if triage.id in by_review:
            by_type.setdefault(triage.input_type, []).append((triage, by_review[triage.id]))
    return {input_type: _of_type(reviews) for input_type, reviews in sorted(by_type.items())}


def _of_type(reviews: Sequence[tuple[Triage, _Samples]]) -> ReviewCalibration:
    measured = [
        (triage, [one for of_agent in ran.values() for one in of_agent])
        for triage, ran in reviews
        if _launched(triage) <= ran.keys()
    ]
    return ReviewCalibration(
        reviews=len(reviews),
        measured=len(measured),
        median_billing=_median([sum(sample.billing for sample in used) for _, used in measured]),
        median_pct=_median(
            [
                estimates.mean(sum(sample.tokens(triage.cost_basis) for sample in used) * 100, triage.budget)
                for triage, used in measured
                if triage.budget > 0
            ]
        ),
        deferred=sum(len(_deferred(triage)) for triage, _ in reviews),
        ran_anyway=sum(len(_deferred(triage) & ran.keys()) for triage, ran in reviews),
        overridden=sum(triage.verdict == "overridden" for triage, _ in reviews),
    )


def _launched(triage: Triage) -> set[str]:
    return {estimates.plain_name(line.name) for line in triage.agents if line.action == "Selected"}


def _deferred(triage: Triage) -> set[str]:
    return {estimates.plain_name(line.name) for line in triage.agents if line.action != "Selected"}


def _median(values: Sequence[int]) -> int | None:
    """Return the median, rounded half away from zero; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return min(estimates.mean(lower + upper, 2), MAX_TOKENS)
