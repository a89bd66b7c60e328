"""How far estimates are off, over simulated months of reviews: the defaults, the rule of 0.1.0, and the present rule.

Only the policy is measured, so this needs no daemon, and its figures are the same on every machine.

A month has four reviews a day, of six agents each. An agent's usual cost is between 10 000 and 250 000 billing tokens,
and single runs spread around it by a factor of about 1.4. In mid-month the model changes, and with it what each agent
costs, to 0.6 to 2.5 times as much. A third of the reviews are sliced. A slice costs 0.15 to 0.4 of the whole document;
fd-architecture and fd-quality read all of it. Each agent is estimated before its review, from what was measured before.
The floor is the error of an estimate that knows everything but the spread of single runs.
"""

import random
import statistics
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from common import Row, grouped
from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.model import Sample
from fluxbudgetd.policy import estimates

_AGENTS = (
    *("fd-architecture", "fd-quality", "fd-safety", "fd-correctness", "fd-performance", "fd-user-product"),
    *("fd-systems", "fd-decisions", "fd-people", "best-practices-researcher", "repo-research-analyst", "api-auditor"),
)
_READ_EVERYTHING = _AGENTS[:2]
_MODELS = (estimates.DEFAULT_MODEL, "claude-opus-4-7")
_DAYS, _REVIEWS_A_DAY, _AGENTS_A_REVIEW, _SLICED_SHARE = 30, 4, 6, 1 / 3
_SPREAD = 0.35
_NEWEST = 200  # as many samples of an agent as the daemon keeps in memory
_RULES = ReviewBudget()
_DAY_MICROS = 86_400_000_000


class Errors(NamedTuple):
    """How far each rule's estimates are off, in tokens."""

    defaults: list[int]
    old: list[int]
    new: list[int]
    floor: list[int]


def month(seed: int) -> Errors:
    """Return the absolute errors of every estimate in a simulated month."""
    chance = random.Random(seed)
    costs = {agent: 10_000 * 25 ** chance.random() for agent in _AGENTS}
    changes = {agent: chance.uniform(0.6, 2.5) for agent in _AGENTS}
    history: dict[str, list[Sample]] = {agent: [] for agent in _AGENTS}
    errors = Errors([], [], [], [])
    for number in range(_DAYS * _REVIEWS_A_DAY):
        day = number // _REVIEWS_A_DAY
        is_late = day >= _DAYS // 2
        ratio = chance.uniform(0.15, 0.4) if chance.random() < _SLICED_SHARE else None
        for agent in chance.sample(_AGENTS, _AGENTS_A_REVIEW):
            sliced = ratio is not None and agent not in _READ_EVERYTHING
            usual = costs[agent] * (changes[agent] if is_late else 1)
            if sliced and ratio is not None:
                usual *= ratio
            actual = round(usual * chance.lognormvariate(0, _SPREAD))
            known, model = history[agent], _MODELS[is_late]
            errors.defaults.append(abs(_default(agent, sliced) - actual))
            errors.old.append(abs(_old_rule(agent, known, sliced) - actual))
            errors.new.append(abs(_new_rule(agent, model, known, sliced) - actual))
            errors.floor.append(abs(round(usual) - actual))
            known.insert(0, _sample(agent, model, sliced, actual, number, day))
    return errors


def _default(agent: str, sliced: bool) -> int:
    tokens = _RULES.agent_defaults[estimates.category(agent)]
    return estimates.times(tokens, _RULES.slicing_multiplier) if sliced else tokens


def _old_rule(agent: str, known: list[Sample], sliced: bool) -> int:
    """Return the estimate of 0.1.0: the mean of one model's rows, sliced ones included, times the multiplier."""
    rows = [sample.billing for sample in known if sample.model == estimates.DEFAULT_MODEL]
    if len(rows) < estimates.MIN_ROWS:
        return _default(agent, sliced)
    tokens = estimates.mean(sum(rows), len(rows))
    return estimates.times(tokens, _RULES.slicing_multiplier) if sliced else tokens


def _new_rule(agent: str, model: str, known: list[Sample], sliced: bool) -> int:
    kind = estimates.category(agent)
    return estimates.for_launch(agent, kind, model, known[:_NEWEST], None, _RULES, "billing", slicing=sliced).tokens


def _sample(agent: str, model: str, sliced: bool, tokens: int, review: int, day: int) -> Sample:
    return Sample(
        session=f"review-{review}",
        instance=f"agent-{agent}",
        agent=agent,
        model=model,
        sliced=sliced,
        input=tokens,
        output=0,
        total=tokens * 10,
        started_at=day * _DAY_MICROS,
        ended_at=day * _DAY_MICROS,
        source="transcripts",
    )


def errors_of_estimates(months: int) -> Iterator[Row]:
    """Simulate months, and compare the median absolute errors of the three rules."""
    simulated = [month(seed) for seed in range(months)]
    medians = Errors(*(list(chain.from_iterable(parts)) for parts in zip(*simulated, strict=True)))
    defaults, old, new, floor = (round(statistics.median(errors)) for errors in medians)
    better = sum(
        statistics.median(each.new) < min(statistics.median(each.defaults), statistics.median(each.old))
        for each in simulated
    )
    name = "estimates, simulated month: median absolute error"
    target = f"< {grouped(min(defaults, old))}"
    yield Row(name, f"{grouped(new)} tokens", target, new < min(defaults, old))
    yield Row("… of the defaults", f"{grouped(defaults)} tokens", "", None)
    yield Row("… of the rule of 0.1.0 (one model, sliced runs in the mean)", f"{grouped(old)} tokens", "", None)
    yield Row("… of estimates that know each agent's usual cost: the floor", f"{grouped(floor)} tokens", "", None)
    yield Row("… months in which the present rule is the best of the three", f"{better} of {months}", "", None)
