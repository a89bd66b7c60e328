"""What an agent is expected to cost.

For a launch, the first of these that exists counts (`for_launch`): the mean of the agent's samples of the launch's
model; the mean of its samples of all models; its calibrated mean; the default of its category. A mean needs at least
three samples and is rounded half away from zero.

Sliced and full samples never enter the same mean, nor do those of reviews and of reactions, which cost less. A sliced
agent costs the mean of its sliced samples; if there are too few of them, its full estimate times the slicing
multiplier. So the multiplier never applies to a cost that slicing has already reduced.

What the command `estimates` prints follows flux-drive's own estimator instead (`measured`): rows of interstat that have
a total and the requested model (or none), at least three of them.
"""

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.model import AgentSample, Sample
from fluxbudgetd.wire.messages import MAX_TOKENS, AgentCalibration, AgentHistory, CostBasis, CostSource, TriageRound

DEFAULT_MODEL = "claude-opus-4-6"
#: Two names of one agent: with this plugin's prefix, and without.
AGENT_PREFIX = "interflux:"
#: A longer name of an agent, in bytes, is that of none: answers with many names must fit into a frame.
MAX_NAME = 200
#: A mean needs at least this many rows or samples.
MIN_ROWS = 3
#: The categories of the estimator's own output, in its order.
CATEGORIES = ("review", "cognitive", "research", "oracle", "generated")

_COGNITIVE = frozenset({"fd-systems", "fd-decisions", "fd-people", "fd-resilience", "fd-perception"})
_RESEARCH = ("-researcher", "-analyzer", "-analyst")
#: These read whole documents even in sliced reviews.
_READ_EVERYTHING = frozenset({"fd-architecture", "fd-quality"})
# What the names of one model differ in: the date of a snapshot, and the mark of the long context.
_VARIANT = re.compile(r"(-\d{8})?(\[1m\])?\Z")
_WORD = re.compile(r"[a-z]+")


class Measured(NamedTuple):
    """An agent's mean cost so far, in tokens."""

    est_tokens: int
    """Of all kinds: the mean of the rows' totals."""
    est_billing: int
    """The mean of input + output."""
    sample_size: int


class AgentEstimate(NamedTuple):
    """What an agent is expected to cost, in tokens of a cost basis.

    `sample_size`: how many samples the estimate is the mean of. `sliced`: it is that of a slice of the document.
    `model`: whose samples were used, None for those of all models.
    """

    tokens: int
    source: CostSource
    sample_size: int
    sliced: bool
    model: str | None


def plain_name(agent: str) -> str:
    """Return an agent's name without the plugin's prefix: both mean the same agent."""
    return agent.removeprefix(AGENT_PREFIX)


def is_name(agent: str) -> bool:
    """Return True if an agent can have this plain name. SQLite's JSON functions end a text at a NUL."""
    return 0 < len(agent.encode(errors="replace")) <= MAX_NAME and "\0" not in agent


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


def for_launch(
    agent: str,
    kind: str,
    model: str | None,
    samples: Sequence[Sample],
    calibrated: AgentCalibration | None,
    rules: ReviewBudget,
    basis: CostBasis,
    *,
    slicing: bool,
    round_: TriageRound = "review",
) -> AgentEstimate:
    """Return the estimate for one launch of an agent.

    `kind` is its category, `model` the model that it will run with, as a full name or a family (`opus`). `samples` and
    `calibrated` are this agent's. `slicing` is True if it gets a slice of the document.
    """
    samples = [each for each in samples if each.round == round_]
    if round_ == "reaction":
        # Calibration is about reviews.
        calibrated = None
    sliced = slicing and plain_name(agent) not in _READ_EVERYTHING
    found = _of_samples([each for each in samples if each.sliced], model, basis) if sliced else None
    if found is None:
        found = _of_samples([each for each in samples if not each.sliced], model, basis)
        if found is None:
            found = _without_samples(kind, calibrated, rules, basis)
        if sliced:
            found = found._replace(tokens=times(found.tokens, rules.slicing_multiplier))
    return found._replace(tokens=min(found.tokens, MAX_TOKENS), sliced=sliced)


def _of_samples(samples: Sequence[Sample], model: str | None, basis: CostBasis) -> AgentEstimate | None:
    """Return the mean of the samples of this model if there are enough, else of all; None if those are too few."""
    own = [] if not model else [each for each in samples if is_of_model(each.model, model)]
    used, of_model = (own, model) if len(own) >= MIN_ROWS else (samples, None)
    if len(used) < MIN_ROWS:
        return None
    tokens = mean(sum(each.tokens(basis) for each in used), len(used))
    return AgentEstimate(tokens, source_of(used), len(used), sliced=False, model=of_model)


def _without_samples(
    kind: str, calibrated: AgentCalibration | None, rules: ReviewBudget, basis: CostBasis
) -> AgentEstimate:
    if calibrated is None or calibrated.sample_size < MIN_ROWS:
        return AgentEstimate(rules.agent_defaults[kind], "default", 0, sliced=False, model=None)
    spread = calibrated.billing if basis == "billing" else calibrated.total
    return AgentEstimate(spread.mean, "calibrated", calibrated.sample_size, sliced=False, model=None)


def source_of(samples: Iterable[Sample]) -> CostSource:
    """Return the common source of samples; `samples` if they come from both."""
    sources = {each.source for each in samples}
    return sources.pop() if len(sources) == 1 else "samples"


@lru_cache(maxsize=1024)  # 200 samples are compared for each launch, and there are few models
def is_of_model(name: str, asked: str) -> bool:
    """Return True if a model's full name is the one asked for. A single word asks for a family of models.

    A date or `[1m]` at the end makes no difference: `sonnet`, `claude-sonnet-4-5` and `claude-sonnet-4-5[1m]` all ask
    for `claude-sonnet-4-5-20250929`.
    """
    asked, name = _VARIANT.sub("", asked), _VARIANT.sub("", name)
    return asked == name or (asked.isalpha() and asked in _WORD.findall(name))


def history(samples: Sequence[Sample]) -> AgentHistory:
    """Return what an agent's samples of all models say, except reactions; there is at least one sample."""
    full = [each for each in samples if not each.sliced and each.round == "review"]
    sliced = [each for each in samples if each.sliced and each.round == "review"]
    return AgentHistory(
        est_tokens=_mean_or_none(full, "total"),
        est_billing=_mean_or_none(full, "billing"),
        sample_size=len(full),
        sliced_tokens=_mean_or_none(sliced, "total"),
        sliced_billing=_mean_or_none(sliced, "billing"),
        sliced_size=len(sliced) or None,
        source=source_of(samples),
    )


def _mean_or_none(samples: Sequence[Sample], basis: CostBasis) -> int | None:
    found = _of_samples(samples, None, basis)
    return None if found is None else min(found.tokens, MAX_TOKENS)


def mean(total: int, count: int) -> int:
    """Return total / count (neither negative), rounded half away from zero."""
    return (2 * total + count) // (2 * count)


def times(tokens: int, factor: float) -> int:
    """Return tokens · factor, rounded half away from zero; the factor counts as it is written in decimals."""
    exact = Fraction(repr(factor)) * tokens
    return mean(exact.numerator, exact.denominator)
