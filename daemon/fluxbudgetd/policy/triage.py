"""The stage-aware budget cut: which review agents are launched within a budget.

Protected agents (Stage 1, and exempt ones of either stage) are always selected, and their cost is counted first. Then
Stage 2 by score, highest first, equal scores by name: each is selected while it fits, or while fewer than `min_agents`
are selected in total. One that does not fit is deferred; a cheaper one after it may still fit. `policy.review_limits`
has the limits, and what an agent must fit into.

Soft enforcement launches a protected set that does not fit, with a warning, and an override selects all agents. Hard
enforcement blocks: no agent is selected, and overrides are not accepted.

The reaction round follows the same rule, without stages: only exempt agents are protected.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Sample
from fluxbudgetd.policy import estimates, review_limits
from fluxbudgetd.policy.review_limits import Limit
from fluxbudgetd.wire.messages import (
    AgentCalibration,
    CostBasis,
    Enforcement,
    TriageAction,
    TriageAgent,
    TriageLine,
    TriageRound,
    TriageVerdict,
)

MAX_AGENTS = 1000
# So that an answer fits into a frame.
_MAX_CATEGORY = 64
_STAGES = (1, 2)
_BASES: tuple[CostBasis, CostBasis] = ("billing", "total")


class Known(NamedTuple):
    """What is known about the costs of agents, by plain name. `model`: what they are launched with, None: unknown."""

    samples: Mapping[str, Sequence[Sample]]
    calibrated: Mapping[str, AgentCalibration]
    model: str | None


class Cut(NamedTuple):
    """What the cut decided. `override` is the given reason, if it counted. `limit` is the tightest one.

    `enforcement` is hard if a limit that all agents together exceed is. `overridable`: an override would launch more.
    """

    verdict: TriageVerdict
    lines: tuple[TriageLine, ...]
    override: str | None
    note: str
    limit: Limit
    enforcement: Enforcement
    overridable: bool


def candidates(
    agents: Sequence[TriageAgent], known: Known, rules: ReviewBudget, round_: TriageRound, *, slicing: bool
) -> list[TriageLine]:
    """Return the agents with their estimates, nothing decided yet; raises `BadInputError`, naming the place.

    In the reaction round all of them are in Stage 2, and their category is `reaction` unless they bring one.
    """
    require_sound(agents, rules.agent_defaults)
    return [_candidate(agent, known, rules, round_, slicing=slicing) for agent in agents]


def _candidate(
    agent: TriageAgent, known: Known, rules: ReviewBudget, round_: TriageRound, *, slicing: bool
) -> TriageLine:
    name = estimates.plain_name(agent.name)
    kind = agent.category or (estimates.category(name) if round_ == "review" else "reaction")
    stage = agent.stage if round_ == "review" else 2
    sliced = slicing if agent.sliced is None else agent.sliced
    samples, calibrated = known.samples.get(name, ()), known.calibrated.get(name)
    billing, total = (
        estimates.for_launch(name, kind, known.model, samples, calibrated, rules, basis, slicing=sliced, round_=round_)
        for basis in _BASES
    )
    return TriageLine(
        name=agent.name,
        score=agent.score,
        stage=stage,
        category=kind,
        protected=stage == 1 or name in rules.exempt_agents,
        est_tokens=billing.tokens,
        source=billing.source,
        sample_size=billing.sample_size,
        sliced=billing.sliced,
        action="Deferred (budget)",
        model=billing.model,
        est_billing=billing.tokens,
        est_total=total.tokens,
    )


def cut(lines: Iterable[TriageLine], limits: Sequence[Limit], min_agents: int, override: str | None) -> Cut:
    """Decide about each agent. The lines are returned in the order in which they were considered.

    Their `est_tokens` are then in the unit of the tightest limit.
    """
    ordered = sorted(lines, key=_order)
    counting = review_limits.counting(limits)
    too_small = [limit for limit in counting if limit.is_exceeded(ordered)]
    enforcement: Enforcement = "hard" if any(each.enforcement == "hard" for each in too_small or counting) else "soft"
    protected = [line for line in ordered if line.protected]
    if broken := [limit for limit in counting if limit.enforcement == "hard" and limit.is_exceeded(protected)]:
        named = review_limits.tightest(broken, protected, broken)
        note = "the protected agents do not fit, and enforcement is hard"
        note += ": overrides are not accepted" if override else ""
        return Cut("blocked", _marked(ordered, "Blocked", ordered, named), None, note, named, "hard", overridable=False)
    if override is not None and enforcement == "soft":
        named = review_limits.tightest(counting, ordered, too_small)
        verdict: TriageVerdict = "overridden" if too_small else "ok"
        marked = _marked(ordered, "Selected", ordered, named)
        return Cut(verdict, marked, override, "", named, enforcement, overridable=False)
    chosen, kept_out = _selected(ordered, counting, min_agents)
    named = review_limits.tightest(counting, chosen, kept_out)
    is_refused = override is not None and bool(too_small)
    note = "enforcement is hard: overrides are not accepted" if is_refused else ""
    verdict = "ok"
    if any(limit.is_exceeded(chosen) for limit in counting):
        verdict = "over_budget"
        is_protected = any(limit.is_exceeded(protected) for limit in counting)
        what = "the protected agents do not fit" if is_protected else f"min_agents is {min_agents}"
        note = "; ".join(filter(None, (f"over the budget: {what}", note)))
    overridable = enforcement == "soft" and len(chosen) < len(ordered)
    return Cut(verdict, _marked(ordered, "Selected", chosen, named), None, note, named, enforcement, overridable)


def tokens(lines: Iterable[TriageLine]) -> int:
    """Return what agents are expected to cost in total."""
    return sum(line.est_tokens for line in lines)


def summary(lines: Sequence[TriageLine], budget: int, *, constrained: bool) -> str:
    """Return the line `Budget: {selected}K / {budget}K ({pct}%) | Deferred: {n} agents ({tokens}K est.)`.

    Thousands are rounded half up, the percentage down. Of a budget of 0, anything selected is `>100%`.
    """
    selected = tokens(line for line in lines if line.action == "Selected")
    left_out = [line for line in lines if line.action != "Selected"]
    share = str(selected * 100 // budget) if budget else (">100" if selected else "0")
    mark = " [sprint-constrained]" if constrained else ""
    return (
        f"Budget: {thousands(selected)}K / {thousands(budget)}K ({share}%)"
        f" | Deferred: {len(left_out)} agents ({thousands(tokens(left_out))}K est.){mark}"
    )


def thousands(count: int) -> int:
    """Return tokens in thousands, rounded half up."""
    return estimates.mean(count, 1000)


def require_sound(agents: Sequence[TriageAgent], categories: Collection[str]) -> None:
    """Raise `BadInputError`, naming the place, unless these agents can be triaged."""
    if len(agents) > MAX_AGENTS:
        raise BadInputError(f"agents: {len(agents)} of them", f"at most {MAX_AGENTS} are triaged at once")
    seen: dict[str, int] = {}
    for index, agent in enumerate(agents):
        place = f"agents[{index}]"
        size = len(agent.name.encode(errors="replace"))
        if not 0 < size <= estimates.MAX_NAME:
            raise BadInputError(f"{place}.name has {size} bytes", f"1 to {estimates.MAX_NAME} are allowed")
        name = estimates.plain_name(agent.name)
        if not name:
            raise BadInputError(f"{place}.name is {agent.name!r}", "give a name after the prefix")
        if name in seen:
            raise BadInputError(
                f"{place}.name is {agent.name!r}, as agents[{seen[name]}].name is", "name each agent once"
            )
        seen[name] = index
        if not math.isfinite(agent.score):
            raise BadInputError(f"{place}.score is {agent.score}", "a finite number is allowed")
        if agent.stage not in _STAGES:
            raise BadInputError(
                f"{place}.stage is {agent.stage}", "1 (runs first) or 2 (the expansion pool) is allowed"
            )
        if agent.category is not None and (agent.category not in categories or len(agent.category) > _MAX_CATEGORY):
            raise BadInputError(
                f"{place}.category is {agent.category[:60]!r}", f"one of: {', '.join(sorted(categories))}, or none"
            )


def _order(line: TriageLine) -> tuple[bool, int, float, str]:
    # Among the optional ones the stage is always 2.
    return not line.protected, line.stage, -line.score, estimates.plain_name(line.name)


def _selected(
    ordered: Sequence[TriageLine], limits: Sequence[Limit], min_agents: int
) -> tuple[list[TriageLine], set[Limit]]:
    """Return the agents that are launched, and the limits that an agent did not fit into."""
    chosen = [line for line in ordered if line.protected]
    spent = {limit: limit.cost(chosen) for limit in limits}
    kept_out: set[Limit] = set()
    for line in ordered:
        if line.protected:
            continue
        too_small = {limit for limit in limits if spent[limit] + limit.cost_of(line) > limit.budget}
        if too_small and len(chosen) >= min_agents:
            kept_out |= too_small
            continue
        chosen.append(line)
        for limit in limits:
            spent[limit] += limit.cost_of(line)
    return chosen, kept_out


def _marked(
    ordered: Sequence[TriageLine], action: TriageAction, chosen: Iterable[TriageLine], limit: Limit
) -> tuple[TriageLine, ...]:
    """Return the lines with this action for the chosen ones, and their costs in the limit's unit."""
    names = {line.name for line in chosen}
    return tuple(
        msgspec.structs.replace(
            line, action=action if line.name in names else line.action, est_tokens=limit.cost_of(line)
        )
        for line in ordered
    )
