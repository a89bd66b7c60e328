"""The limits of a review, each in its own unit, and the rules of the reaction round."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.flux_drive import ReactionBudget, ReviewBudget
from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Sample
from fluxbudgetd.policy import review_limits, triage
from fluxbudgetd.policy.review_limits import Limit
from fluxbudgetd.policy.triage import Cut, Known
from fluxbudgetd.wire.messages import CostBasis, Enforcement, TriageAgent, TriageLine
from harness.values import a_line, samples_of

RULES = ReviewBudget()


def of_type(budget: int, enforcement: Enforcement = "soft") -> Limit:
    return Limit("type", "billing", budget, enforcement)


def of_run(budget: int, unit: CostBasis = "total", enforcement: Enforcement = "soft") -> Limit:
    return Limit("run", unit, budget, enforcement)


def costing(name: str, billing: int, total: int, score: float = 1.0, stage: int = 2) -> TriageLine:
    """Return an agent with estimates in both units."""
    return a_line(name, billing, score, stage, est_total=total)


def selected(found: Cut) -> list[str]:
    return [line.name for line in found.lines if line.action == "Selected"]


def test_agent_that_does_not_fit_into_the_runs_total_tokens() -> None:
    """Its 62 500 billing tokens fit into the input type's 150 000, its 625 000 in total not into the run's 200 000."""
    known = Known({"fd-x": samples_of("m", *[62_500] * 5)}, {}, "m")
    lines = triage.candidates([TriageAgent(name="fd-x", score=1, stage=2)], known, RULES, "review", slicing=False)
    limits = review_limits.limits("plan", RULES, 200_000, "total", "soft")
    for minimum, verdict, launched in ((0, "ok", []), (1, "over_budget", ["fd-x"])):
        found = triage.cut(lines, limits, minimum, None)
        assert (found.verdict, selected(found)) == (verdict, launched)
        assert (found.limit.name, found.limit.budget, found.limit.unit) == ("run", 200_000, "total")
        assert found.lines[0].est_tokens == 625_000


def test_agent_must_fit_into_both_units() -> None:
    lines = [costing("a", 60, 100, 9), costing("b", 50, 100, 8), costing("c", 10, 901, 7), costing("d", 10, 100, 6)]
    found = triage.cut(lines, [of_type(100), of_run(1_000)], 0, None)
    assert selected(found) == ["a", "d"]


def test_limit_of_the_larger_share_is_named() -> None:
    """Nothing is kept out. The answer's numbers are in that limit's unit."""
    lines = [costing("a", 30, 600, 9), costing("b", 30, 100, 8)]
    found = triage.cut(lines, [of_type(100), of_run(1_000)], 0, None)
    assert (found.limit.name, [line.est_tokens for line in found.lines]) == ("run", [600, 100])
    found = triage.cut(lines, [of_type(80), of_run(1_000)], 0, None)
    assert (found.limit.name, [line.est_tokens for line in found.lines]) == ("type", [30, 30])
    found = triage.cut(lines, [of_type(60), of_run(700)], 0, None)
    assert found.limit.name == "type"


def test_limit_that_keeps_an_agent_out_is_named_first() -> None:
    """The launched agents use 90 % of the other one."""
    lines = [costing("a", 90, 100, 9), costing("b", 5, 950, 8)]
    found = triage.cut(lines, [of_type(100), of_run(1_000)], 0, None)
    assert (selected(found), found.limit.name) == (["a"], "run")


def test_limit_of_0_is_the_tightest() -> None:
    """This is the case even if nothing is launched."""
    found = triage.cut([], [of_type(100), of_run(0)], 2, None)
    assert (found.limit.name, found.verdict) == ("run", "ok")


@pytest.mark.parametrize("minimum", [0, 2])
@pytest.mark.parametrize("stage", [1, 2])
def test_hard_limit_counts_even_if_a_soft_one_is_tighter(stage: int, minimum: int) -> None:
    """Both units are exceeded, the soft one by more. An override would exceed the hard one as well."""
    lines = [costing("a", 500, 1_500, stage=stage), costing("b", 500, 1_500, stage=stage)]
    limits = [of_type(100), of_run(1_000, enforcement="hard")]
    found = triage.cut(lines, limits, minimum, "release day")
    assert (found.enforcement, found.override, found.overridable) == ("hard", None, False)
    if stage == 1:
        assert (found.verdict, found.limit.name) == ("blocked", "run")


def test_override_is_accepted_if_only_a_soft_limit_is_exceeded() -> None:
    lines = [costing("a", 90, 10, 2), costing("b", 90, 10)]
    limits = [of_type(100), of_run(1_000, enforcement="hard")]
    found = triage.cut(lines, limits, 0, None)
    assert (selected(found), found.enforcement, found.overridable) == (["a"], "soft", True)
    found = triage.cut(lines, limits, 0, "release day")
    assert (found.verdict, found.override, selected(found)) == ("overridden", "release day", ["a", "b"])
    assert found.limit.name == "type"


@pytest.mark.parametrize("kind", RULES.budgets)
def test_smaller_one_counts_of_two_limits_in_one_unit(kind: str) -> None:
    budget = RULES.budgets[kind]
    for remaining, name in ((None, "type"), (budget + 1, "type"), (budget, "type"), (budget - 1, "run"), (0, "run")):
        found = review_limits.limits(kind, RULES, remaining, "billing", "soft")
        assert (found[0].name, found[0].budget) == ("type", budget)
        assert [limit.name for limit in review_limits.counting(found)] == [name]
        assert triage.cut([], found, 2, None).limit.name == name
    found = review_limits.limits(kind, RULES, budget - 1, "total", "soft")
    assert review_limits.counting(found) == found


@pytest.mark.parametrize("of_file", ["soft", "hard"])
@pytest.mark.parametrize("of_the_run", ["soft", "hard"])
def test_cost_basis_and_enforcement_of_run_and_file(of_file: Enforcement, of_the_run: Enforcement) -> None:
    """Each limit has its own cost basis; the run's enforcement can only make the file's stricter."""
    rules = msgspec.structs.replace(RULES, cost_basis="total", enforcement=of_file)
    own, runs = review_limits.limits("plan", rules, 5, "billing", of_the_run)
    assert (own.unit, own.enforcement) == ("total", of_file)
    assert (runs.unit, runs.enforcement) == ("billing", "hard" if "hard" in (of_file, of_the_run) else "soft")


def test_unknown_input_type_is_refused() -> None:
    with pytest.raises(BadInputError, match="poem") as caught:
        review_limits.limits("poem", RULES, None, "billing", "soft")
    assert "diff-small" in caught.value.hint
    own = msgspec.structs.replace(RULES, budgets={**RULES.budgets, "poem": 7})
    assert review_limits.limits("poem", own, None, "billing", "soft")[0].budget == 7


# --- the reaction round


def reaction(agents: Sequence[TriageAgent], rules: ReviewBudget, samples: dict[str, list[Sample]] | None = None) -> Cut:
    known = Known(samples or {}, {}, None)
    rules = review_limits.for_round(rules, "reaction")
    lines = triage.candidates(agents, known, rules, "reaction", slicing=False)
    return triage.cut(lines, review_limits.limits("plan", rules, None, "billing", "soft"), rules.min_agents, None)


AGENTS = [TriageAgent(name=name, score=score, stage=1) for name, score in (("a", 1), ("b", 5), ("c", 3))]


def test_reaction_round_has_a_fraction_of_the_budget() -> None:
    """A quarter of 150 000 is 37 500: two reactions of 15 000, the best ones whatever their stage."""
    found = reaction(AGENTS, RULES)
    assert (found.limit.budget, found.verdict, selected(found)) == (37_500, "ok", ["b", "c"])
    assert {(line.category, line.stage, line.est_tokens) for line in found.lines} == {("reaction", 2, 15_000)}


def test_reaction_round_has_its_own_minimum() -> None:
    rules = msgspec.structs.replace(RULES, min_agents=0, reaction_budget=ReactionBudget(fraction=0, min_agents=2))
    assert selected(reaction(AGENTS, rules)) == ["b", "c"]


def test_exempt_agents_always_react() -> None:
    agents = [*AGENTS, TriageAgent(name="interflux:fd-safety", score=0, stage=2)]
    assert selected(reaction(agents, RULES)) == ["interflux:fd-safety", "b"]


def test_reactions_with_samples_are_estimated_by_them() -> None:
    """Samples of reviews do not count. A category that an agent brings takes precedence over `reaction`."""
    samples = {
        "a": samples_of("m", 20_000, 20_000, 20_000, round="reaction"),
        "b": samples_of("m", 90_000, 90_000, 90_000),
    }
    agents = [AGENTS[0], TriageAgent(name="d", score=9, stage=2, category="research"), AGENTS[1]]
    rules = msgspec.structs.replace(RULES, agent_defaults={**RULES.agent_defaults, "reaction": 7})
    found = reaction(agents, rules, samples)
    assert {line.name: line.est_tokens for line in found.lines} == {"a": 20_000, "d": 15_000, "b": 7}


def test_review_round_uses_the_rules_as_they_are() -> None:
    assert review_limits.for_round(RULES, "review") == RULES


# --- properties

some_lines = st.lists(
    st.builds(
        costing, st.sampled_from("abcdefgh"), st.integers(0, 60), st.integers(0, 600),
        st.sampled_from([0.0, 2.0, 3.0]), st.integers(1, 2),
    ),
    unique_by=lambda line: line.name,
)  # fmt: skip
budgets = st.integers(0, 200)
enforcements = st.sampled_from(["soft", "hard"])


@given(some_lines, budgets, st.integers(0, 2_000), st.integers(0, 4))
def test_launched_agents_fit_into_every_unit(lines: list[TriageLine], billing: int, total: int, minimum: int) -> None:
    """Otherwise they are protected, or needed for the minimum."""
    limits = [of_type(billing), of_run(total)]
    found = triage.cut(lines, limits, minimum, None)
    chosen = [line for line in found.lines if line.action == "Selected"]
    fits = not any(limit.is_exceeded(chosen) for limit in limits)
    assert (found.verdict == "ok") == fits
    assert fits or len(chosen) <= max(minimum, sum(line.protected for line in lines))
    assert found.limit in limits
    assert all(line.est_tokens == found.limit.cost_of(line) for line in found.lines)
    for line in found.lines:
        assert line.action == "Selected" or any(limit.is_exceeded([*chosen, line]) for limit in limits)


@given(some_lines, budgets, budgets, st.integers(0, 4), enforcements, st.none() | st.just("why"))
def test_two_limits_in_one_unit_are_one(
    lines: list[TriageLine], first: int, second: int, minimum: int, enforcement: Enforcement, override: str | None
) -> None:
    """The result is that of the smaller one alone."""
    limits = [of_type(first), of_run(second, "billing", enforcement)]
    alone = limits[1] if second < first else limits[0]
    assert triage.cut(lines, limits, minimum, override) == triage.cut(lines, [alone], minimum, override)


@given(some_lines, budgets, st.integers(0, 4), enforcements, st.none() | st.just("why"))
def test_limit_that_is_never_reached_changes_nothing(
    lines: list[TriageLine], budget: int, minimum: int, enforcement: Enforcement, override: str | None
) -> None:
    """This is the case for any unit and enforcement, unless nothing at all is exceeded."""
    alone = triage.cut(lines, [of_type(budget)], minimum, override)
    found = triage.cut(lines, [of_type(budget), of_run(10**9, enforcement=enforcement)], minimum, override)
    assert selected(found) == selected(alone)
    assert (found.verdict, found.note) == (alone.verdict, alone.note)
