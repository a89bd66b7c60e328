"""The limits of a review: each has its own unit, and amounts of different units are never compared.

The input type's budget is in tokens of the budget file's cost basis, what the run has left in tokens of the run's. An
agent fits if it fits into each limit, by what it costs in that limit's unit. Of several limits in one unit only the
smallest counts, even if it is 0.

The *tightest* limit is the one that the answer names. A limit that has kept an agent out comes before one that has not,
then the one of which the launched agents need the larger share. Of two equal ones the input type's is named.

A further limit needs a name, a unit, and in `Limit.cost_of` what an agent costs in that unit.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import msgspec

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.errors import BadInputError
from fluxbudgetd.policy import estimates
from fluxbudgetd.wire.messages import CostBasis, Enforcement, LimitName, TriageLine, TriageRound


class Limit(NamedTuple):
    """A budget, the unit that it is in, and how strictly it counts."""

    name: LimitName
    unit: CostBasis
    budget: int
    enforcement: Enforcement

    def cost(self, lines: Iterable[TriageLine]) -> int:
        """Return what agents are expected to cost in total, in this limit's unit."""
        return sum(self.cost_of(line) for line in lines)

    def cost_of(self, line: TriageLine) -> int:
        """Return what an agent is expected to cost, in this limit's unit."""
        cost = line.est_billing if self.unit == "billing" else line.est_total
        return line.est_tokens if cost is None else cost

    def is_exceeded(self, lines: Iterable[TriageLine]) -> bool:
        """Return True if these agents together do not fit."""
        return self.cost(lines) > self.budget


def for_round(rules: ReviewBudget, round_: TriageRound) -> ReviewBudget:
    """Return the rules of a round: the reaction round has a fraction of each budget, and a minimum of its own."""
    if round_ == "review":
        return rules
    reaction = rules.reaction_budget
    budgets = {kind: estimates.times(budget, reaction.fraction) for kind, budget in rules.budgets.items()}
    return msgspec.structs.replace(rules, budgets=budgets, min_agents=reaction.min_agents)


def limits(
    input_type: str, rules: ReviewBudget, remaining: int | None, basis: CostBasis, enforcement: Enforcement
) -> tuple[Limit, ...]:
    """Return the input type's limit, followed by the run's if it has one.

    `remaining`, `basis` and `enforcement` are the run's (remaining None: no budget). Its limit is hard if the run or
    the budget file is. Raises `BadInputError` for an unknown input type.
    """
    if input_type not in rules.budgets:
        raise BadInputError(
            f"input type {input_type[:60]!r} is not known", f"one of: {', '.join(sorted(rules.budgets))}"
        )
    of_type = Limit("type", rules.cost_basis, rules.budgets[input_type], rules.enforcement)
    if remaining is None:
        return (of_type,)
    strict: Enforcement = "hard" if "hard" in (rules.enforcement, enforcement) else "soft"
    return of_type, Limit("run", basis, remaining, strict)


def counting(all_limits: Sequence[Limit]) -> tuple[Limit, ...]:
    """Return the smallest limit of each unit; of equal ones the first."""
    smallest: dict[CostBasis, Limit] = {}
    for limit in all_limits:
        if limit.unit not in smallest or limit.budget < smallest[limit.unit].budget:
            smallest[limit.unit] = limit
    return tuple(limit for limit in all_limits if limit in smallest.values())


def tightest(among: Iterable[Limit], launched: Sequence[TriageLine], kept_out: Collection[Limit]) -> Limit:
    """Return the tightest of these limits; `kept_out` are those that an agent did not fit into."""
    return max(among, key=lambda limit: (limit in kept_out, _share(limit, launched)))


def _share(limit: Limit, launched: Sequence[TriageLine]) -> Fraction | float:
    return Fraction(limit.cost(launched), limit.budget) if limit.budget else math.inf
