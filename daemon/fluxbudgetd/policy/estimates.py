"""What an agent is expected to cost: the mean of what it has cost so far, otherwise the default of its category.

The rules are those of flux-drive's own estimator: rows that have a total and the requested model (or none), at least
three of them, means rounded half away from zero.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Literal, NamedTuple

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.model import AgentSample
from fluxbudgetd.wire.messages import MAX_TOKENS, CostBasis

DEFAULT_MODEL = "claude-opus-4-6"
#: Two names of one agent: with this plugin's prefix, and without.
AGENT_PREFIX = "interflux:"
#: A mean needs at least this many rows.
MIN_ROWS = 3
#: The categories of the estimator's own output, in its order.
CATEGORIES = ("review", "cognitive", "research", "oracle", "generated")

_COGNITIVE = frozenset({"fd-systems", "fd-decisions", "fd-people", "fd-resilience", "fd-perception"})
_RESEARCH = ("-researcher", "-analyzer", "-analyst")
#: These read whole documents even in sliced reviews.
_READ_EVERYTHING = frozenset({"fd-architecture", "fd-quality"})


class Measured(NamedTuple):
    """An agent's mean cost so far, in tokens."""

    est_tokens: int
    """Of all kinds: the mean of the rows' totals."""
    est_billing: int
    """The mean of input + output."""
    sample_size: int

    def of(self, basis: CostBasis) -> int:
        """Return the mean in tokens of a cost basis."""
        return self.est_billing if basis == "billing" else self.est_tokens


class AgentEstimate(NamedTuple):
    """What an agent is expected to cost, in tokens of a cost basis. `sliced`: the multiplier has been applied."""

    tokens: int
    source: Literal["interstat", "default"]
    sample_size: int
    sliced: bool


def plain_name(agent: str) -> str:
    """Return an agent's name without the plugin's prefix: both mean the same agent."""
    return agent.removeprefix(AGENT_PREFIX)


def category(agent: str) -> str:
    """Return an agent's category, by its name."""
    name = plain_name(agent)
    if name in _COGNITIVE:
        return "cognitive"
    if name.endswith(_RESEARCH):
        return "research"
    if name.startswith("oracle"):
        return "oracle"
    return "review" if name.startswith("fd-") else "generated"


def measured(samples: Iterable[AgentSample]) -> dict[str, Measured]:
    """Return the means of the agents with enough rows, by plain name, in alphabetical order."""
    sums: dict[str, tuple[int, int, int]] = {}
    for sample in samples:
        name = plain_name(sample.agent)
        rows, billing, total = sums.get(name, (0, 0, 0))
        sums[name] = (rows + sample.rows, billing + sample.billing, total + sample.total)
    return {
        name: Measured(mean(total, rows), mean(billing, rows), rows)
        for name, (rows, billing, total) in sorted(sums.items())
        if rows >= MIN_ROWS
    }


def of_agent(
    agent: str,
    kind: str,
    known: Mapping[str, Measured],
    rules: ReviewBudget,
    basis: CostBasis,
    *,
    slicing: bool,
) -> AgentEstimate:
    """Return an agent's estimate; `kind` is its category, `slicing` is True if it gets a slice of the document."""
    found = known.get(plain_name(agent))
    sliced = slicing and plain_name(agent) not in _READ_EVERYTHING
    tokens = rules.agent_defaults[kind] if found is None else found.of(basis)
    if sliced:
        tokens = times(tokens, rules.slicing_multiplier)
    tokens = min(tokens, MAX_TOKENS)
    if found is None:
        return AgentEstimate(tokens, "default", 0, sliced)
    return AgentEstimate(tokens, "interstat", found.sample_size, sliced)


def mean(total: int, count: int) -> int:
    """Return total / count (neither negative), rounded half away from zero."""
    return (2 * total + count) // (2 * count)


def times(tokens: int, factor: float) -> int:
    """Return tokens · factor, rounded half away from zero; the factor counts as it is written in decimals."""
    exact = Fraction(repr(factor)) * tokens
    return mean(exact.numerator, exact.denominator)
