"""The stage-aware budget cut: which review agents are launched within a budget.

Protected agents (Stage 1, and exempt ones of either stage) are always selected, and their cost is counted first. Then
Stage 2 by score, highest first, equal scores by name: each is selected while it fits, or while fewer than `min_agents`
are selected in total. One that does not fit is deferred; a cheaper one after it may still fit.

Soft enforcement launches a protected set that does not fit, with a warning, and an override selects all agents. Hard
enforcement blocks: no agent is selected, and overrides are not accepted.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.errors import BadInputError
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.estimates import Measured
from fluxbudgetd.wire.messages import CostBasis, Enforcement, TriageAction, TriageAgent, TriageLine, TriageVerdict

MAX_AGENTS = 1000
# So that an answer fits into a frame.
_MAX_NAME = 200
_MAX_CATEGORY = 64
_STAGES = (1, 2)


class Limit(NamedTuple):
    """The budget of a review: what counts, in tokens of which basis, and how strictly.

    `constrained`: the run's remaining budget is smaller than the input type's, so it counts.
    """

    budget: int
    type_budget: int
    constrained: bool
    basis: CostBasis
    enforcement: Enforcement


class Cut(NamedTuple):
    """What the cut decided. `override` is the given reason, if it counted."""

    verdict: TriageVerdict
    lines: tuple[TriageLine, ...]
    override: str | None
    note: str


def limit(
    input_type: str, rules: ReviewBudget, remaining: int | None, basis: CostBasis, enforcement: Enforcement
) -> Limit:
    """Return the limit of a review; `remaining`, `basis` and `enforcement` are the run's (remaining None: no budget).

    The run's remaining budget counts if it is the smaller number, even if it is 0, and with it the run's basis and
    enforcement. (If the bases differ, the numbers are compared without conversion.) Raises `BadInputError` for an
    unknown input type.
    """
    if input_type not in rules.budgets:
        raise BadInputError(
            f"input type {input_type[:60]!r} is not known", f"one of: {', '.join(sorted(rules.budgets))}"
        )
    of_type = rules.budgets[input_type]
    if remaining is None or remaining >= of_type:
        return Limit(of_type, of_type, constrained=False, basis=rules.cost_basis, enforcement=rules.enforcement)
    strict: Enforcement = "hard" if "hard" in (rules.enforcement, enforcement) else "soft"
    return Limit(remaining, of_type, constrained=True, basis=basis, enforcement=strict)


def candidates(
    agents: Sequence[TriageAgent],
    known: Mapping[str, Measured],
    rules: ReviewBudget,
    basis: CostBasis,
    *,
    slicing: bool,
) -> list[TriageLine]:
    """Return the agents with their estimates, nothing decided yet; raises `BadInputError`, naming the place."""
    require_sound(agents, rules.agent_defaults)
    lines = []
    for agent in agents:
        kind = agent.category or estimates.category(agent.name)
        sliced = slicing if agent.sliced is None else agent.sliced
        found = estimates.of_agent(agent.name, kind, known, rules, basis, slicing=sliced)
        lines.append(
            TriageLine(
                name=agent.name,
                score=agent.score,
                stage=agent.stage,
                category=kind,
                protected=agent.stage == 1 or estimates.plain_name(agent.name) in rules.exempt_agents,
                est_tokens=found.tokens,
                source=found.source,
                sample_size=found.sample_size,
                sliced=found.sliced,
                action="Deferred (budget)",
            )
        )
    return lines


def cut(
    lines: Iterable[TriageLine], budget: int, min_agents: int, enforcement: Enforcement, override: str | None
) -> Cut:
    """Decide about each agent. The lines are returned in the order in which they were considered."""
    ordered = sorted(lines, key=_order)
    protected = tokens(line for line in ordered if line.protected)
    if enforcement == "hard" and protected > budget:
        note = "the protected agents do not fit, and enforcement is hard"
        note += ": overrides are not accepted" if override else ""
        return Cut("blocked", _marked(ordered, "Blocked", range(len(ordered))), None, note)
    chosen = _selected(ordered, budget, min_agents)
    fits = len(chosen) == len(ordered) and tokens(ordered) <= budget
    if override is not None and enforcement == "soft":
        verdict: TriageVerdict = "ok" if fits else "overridden"
        return Cut(verdict, _marked(ordered, "Selected", range(len(ordered))), override, "")
    note = "enforcement is hard: overrides are not accepted" if override and enforcement == "hard" and not fits else ""
    verdict = "ok"
    if tokens(ordered[index] for index in chosen) > budget:
        verdict = "over_budget"
        what = "the protected agents do not fit" if protected > budget else f"min_agents is {min_agents}"
        note = "; ".join(filter(None, (f"over the budget: {what}", note)))
    return Cut(verdict, _marked(ordered, "Selected", chosen), None, note)


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
        if not 0 < size <= _MAX_NAME:
            raise BadInputError(f"{place}.name has {size} bytes", f"1 to {_MAX_NAME} are allowed")
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


def _selected(ordered: Sequence[TriageLine], budget: int, min_agents: int) -> list[int]:
    chosen = [index for index, line in enumerate(ordered) if line.protected]
    spent = tokens(ordered[index] for index in chosen)
    for index, line in enumerate(ordered):
        if not line.protected and (spent + line.est_tokens <= budget or len(chosen) < min_agents):
            chosen.append(index)
            spent += line.est_tokens
    return chosen


def _marked(ordered: Sequence[TriageLine], action: TriageAction, chosen: Collection[int]) -> tuple[TriageLine, ...]:
    marks = set(chosen)
    return tuple(
        msgspec.structs.replace(line, action=action) if index in marks else line for index, line in enumerate(ordered)
    )
