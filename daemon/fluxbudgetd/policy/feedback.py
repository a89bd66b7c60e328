"""How past reviews went, by input type: their costs and budgets, and what became of the decisions."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fluxbudgetd.model import Sample, Triage
from fluxbudgetd.policy import estimates, triage
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.policy.review_limits import Limit
from fluxbudgetd.wire.messages import MAX_TOKENS, ReviewCalibration

#: The samples of one review's agents, by plain name.
_Samples = Mapping[str, Sequence[Sample]]


def of_reviews(
    triages: Iterable[Triage], samples: Iterable[Sample], reviewed: ReviewAgents
) -> dict[str, ReviewCalibration]:
    """Return how the reviews of each input type went; reaction rounds are apart, as `TYPE (reaction)`.

    A sub-agent belongs to the latest earlier review that named its agent. A triage of which no agent ran is left out:
    usually it was repeated before the review began.
    """
    by_review: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        agent = reviewed.naming(sample)
        if agent is not None:
            by_review.setdefault(agent.triage.id, {}).setdefault(sample.agent, []).append(sample)
    by_type: dict[str, list[tuple[Triage, _Samples]]] = {}
    for one in triages:
        if one.id in by_review:
            kind = one.input_type if one.round == "review" else f"{one.input_type} ({one.round})"
            by_type.setdefault(kind, []).append((one, by_review[one.id]))
    return {kind: _of_type(reviews) for kind, reviews in sorted(by_type.items())}


def _of_type(reviews: Sequence[tuple[Triage, _Samples]]) -> ReviewCalibration:
    measured = [
        (decided, [one for of_agent in ran.values() for one in of_agent])
        for decided, ran in reviews
        if _launched(decided) <= ran.keys()
    ]
    return ReviewCalibration(
        reviews=len(reviews),
        measured=len(measured),
        median_billing=_median([sum(sample.billing for sample in used) for _, used in measured]),
        median_pct=_median(
            [
                estimates.mean(sum(sample.tokens(decided.cost_basis) for sample in used) * 100, decided.budget)
                for decided, used in measured
                if decided.budget > 0
            ]
        ),
        deferred=sum(len(_deferred(decided)) for decided, _ in reviews),
        ran_anyway=sum(len(_deferred(decided) & ran.keys()) for decided, ran in reviews),
        overridden=sum(_overridden(decided) for decided, _ in reviews),
    )


def _launched(decided: Triage) -> set[str]:
    return {estimates.plain_name(line.name) for line in decided.agents if line.action == "Selected"}


def _deferred(decided: Triage) -> set[str]:
    return {estimates.plain_name(line.name) for line in decided.agents if line.action != "Selected"}


def _overridden(decided: Triage) -> int:
    """Return how many agents only an override has launched."""
    if decided.verdict != "overridden":
        return 0
    # Without the override, the limit that is named would have counted.
    limit = Limit("run" if decided.sprint_constrained else "type", decided.cost_basis, decided.budget, "soft")
    undecided = [msgspec.structs.replace(line, action="Deferred (budget)") for line in decided.agents]
    without = triage.cut(undecided, [limit], decided.min_agents, None)
    return sum(line.action != "Selected" for line in without.lines)


def _median(values: Sequence[int]) -> int | None:
    """Return the median, rounded half away from zero; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    lower, upper = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return min(estimates.mean(lower + upper, 2), MAX_TOKENS)
