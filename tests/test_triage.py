"""The rules of triage: which agents are launched within a budget."""

import math
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.errors import BadInputError
from fluxbudgetd.policy import triage
from fluxbudgetd.policy.review_limits import Limit
from fluxbudgetd.policy.triage import Known
from fluxbudgetd.wire.messages import AgentCalibration, Enforcement, Spread, TriageAgent, TriageLine, encode
from harness.values import a_line, samples_of

RULES = ReviewBudget()
NOTHING = Known({}, {}, None)
OF_CALIBRATION = AgentCalibration(
    billing=Spread(mean=55, p50=1, p90=2), total=Spread(mean=550, p50=1, p90=2), sample_size=4
)


def an_agent(name: str, score: float = 1.0, stage: int = 2, **fields: Any) -> TriageAgent:
    return TriageAgent(name=name, score=score, stage=stage, **fields)


def lines_of(*agents: TriageAgent, slicing: bool = False, rules: ReviewBudget = RULES) -> list[TriageLine]:
    return triage.candidates(agents, NOTHING, rules, "review", slicing=slicing)


def cut(
    lines: Iterable[TriageLine], budget: int, minimum: int, enforcement: Enforcement, override: str | None
) -> triage.Cut:
    return triage.cut(lines, [Limit("type", "billing", budget, enforcement)], minimum, override)


def selected(found: triage.Cut) -> list[str]:
    return [line.name for line in found.lines if line.action == "Selected"]


CATEGORIES = {
    "cognitive": "fd-systems fd-decisions fd-people fd-resilience fd-perception interflux:fd-people",
    "research": "repo-researcher log-analyzer cost-analyst fd-cost-analyst interflux:log-analyzer",
    "oracle": "oracle oracle-council interflux:oracle",
    "review": "fd-quality interflux:fd-quality fd-systems-2 fd-oracle",
    "generated": "researcher my-oracle fd other:fd-quality FD-quality x",
}
DEFAULTS = {"cognitive": 35_000, "research": 15_000, "oracle": 80_000, "review": 40_000, "generated": 40_000}


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_of_an_agent(category: str) -> None:
    for line in (line for name in CATEGORIES[category].split() for line in lines_of(an_agent(name))):
        assert (line.category, line.est_tokens, line.source) == (category, DEFAULTS[category], "default"), line.name


def test_given_category_takes_precedence() -> None:
    found = lines_of(an_agent("fd-quality", category="oracle"), an_agent("x", category="reaction"))
    assert [(line.category, line.est_tokens) for line in found] == [("oracle", 80_000), ("reaction", 15_000)]


def test_line_has_the_estimate_in_both_bases_and_its_origin() -> None:
    """The name counts without the plugin's prefix."""
    known = Known({"fd-quality": samples_of("opus-9", 700, 700, 700)}, {"fd-x": OF_CALIBRATION}, "opus-9")
    lines = triage.candidates(
        [an_agent("interflux:fd-quality"), an_agent("fd-x"), an_agent("x")], known, RULES, "review", slicing=False
    )
    assert [(line.est_billing, line.est_total, line.source, line.sample_size, line.model) for line in lines] == [
        (700, 7_000, "transcripts", 3, "opus-9"),
        (55, 550, "calibrated", 4, None),
        (40_000, 40_000, "default", 0, None),
    ]


def test_huge_estimates_are_capped() -> None:
    """They use the highest default and the highest multiplier that are allowed."""
    rules = msgspec.structs.replace(RULES, slicing_multiplier=10.0, agent_defaults={"generated": 2**63 - 1})
    (line,) = lines_of(an_agent("x"), slicing=True, rules=rules)
    assert encode(line)


def test_stage_1_and_exempt_agents_are_protected() -> None:
    agents = [an_agent("a", stage=1), an_agent("fd-safety"), an_agent("interflux:fd-correctness"), an_agent("b")]
    assert [line.protected for line in lines_of(*agents)] == [True, True, True, False]


REVIEW = [
    an_agent("fd-architecture", 5, 1),
    an_agent("fd-quality", 4, 1),
    an_agent("fd-safety", 0),
    an_agent("fd-performance", 9),
    an_agent("repo-researcher", 3),
    an_agent("log-analyzer", 2),
    an_agent("cost-analyst", 1),
]


def test_cut_of_a_plan() -> None:
    """Three protected agents take 120 000 of 150 000. The best of the others does not fit; two cheaper ones do."""
    found = cut(lines_of(*REVIEW), 150_000, 2, "soft", None)
    assert found.verdict == "ok"
    assert {line.name for line in found.lines} - set(selected(found)) == {"fd-performance", "cost-analyst"}
    assert triage.summary(found.lines, 150_000, constrained=False) == (
        "Budget: 150K / 150K (100%) | Deferred: 2 agents (55K est.)"
    )


def test_budget_of_0_selects_only_protected_agents() -> None:
    """An exhausted sprint must not count as one without a budget."""
    found = cut(lines_of(*REVIEW), 0, 2, "soft", None)
    assert (found.verdict, sorted(selected(found))) == ("over_budget", ["fd-architecture", "fd-quality", "fd-safety"])
    assert found.note
    assert triage.summary(found.lines, 0, constrained=True) == (
        "Budget: 120K / 0K (>100%) | Deferred: 4 agents (85K est.) [sprint-constrained]"
    )
    assert triage.summary([], 0, constrained=False) == "Budget: 0K / 0K (0%) | Deferred: 0 agents (0K est.)"


def test_hard_enforcement_blocks_protected_agents_that_do_not_fit() -> None:
    """No agent is selected, and overrides are not accepted."""
    for override in (None, "release day"):
        found = cut(lines_of(*REVIEW), 119_999, 2, "hard", override)
        assert (found.verdict, found.override) == ("blocked", None)
        assert {line.action for line in found.lines} == {"Blocked"}
    assert triage.summary(found.lines, 119_999, constrained=True) == (
        "Budget: 0K / 120K (0%) | Deferred: 7 agents (205K est.) [sprint-constrained]"
    )
    assert cut(lines_of(*REVIEW), 120_000, 2, "hard", None).verdict == "ok"


def test_override_selects_all_under_soft_enforcement() -> None:
    """Its reason is kept. Under hard enforcement it changes nothing."""
    soft = cut(lines_of(*REVIEW), 150_000, 2, "soft", "release day")
    assert (soft.verdict, soft.override, len(selected(soft))) == ("overridden", "release day", len(REVIEW))
    hard = cut(lines_of(*REVIEW), 150_000, 2, "hard", "release day")
    assert (hard.verdict, hard.override) == ("ok", None)
    assert hard.lines == cut(lines_of(*REVIEW), 150_000, 2, "hard", None).lines
    assert hard.note


def test_min_agents_are_selected_at_any_cost() -> None:
    """These are the best ones, including the protected; no further agent is selected."""
    lines = [a_line("c", 900, 1), a_line("b", 900, 3), a_line("a", 900, 3), a_line("d", 10, 2)]
    assert selected(cut(lines, 100, 2, "soft", None)) == ["a", "b"]
    assert selected(cut(lines, 100, 0, "soft", None)) == ["d"]
    with_protected = [*lines, a_line("p", 50, 0, 1)]
    assert selected(cut(with_protected, 100, 2, "soft", None)) == ["p", "a"]
    assert selected(cut(with_protected, 100, 1, "soft", None)) == ["p", "d"]
    assert cut(lines, 100, 2, "soft", None).verdict == "over_budget"


def test_equal_scores_are_ordered_by_name() -> None:
    """The plugin's prefix does not matter."""
    lines = [a_line("fd-c", 10), a_line("interflux:fd-b", 10), a_line("fd-a", 10), a_line("fd-d", 10, 1.5)]
    assert selected(cut(lines, 30, 0, "soft", None)) == ["fd-d", "fd-a", "interflux:fd-b"]


some_lines = st.lists(
    st.builds(
        lambda name, tokens, score, stage, exempt: a_line(name, tokens, score, stage, protected=stage == 1 or exempt),
        st.sampled_from("abcdefgh"), st.integers(0, 60), st.sampled_from([-1.5, 0.0, 2.0, 3.0]), st.integers(1, 2),
        st.sampled_from([False, False, True]),
    ),
    unique_by=lambda line: line.name,
)  # fmt: skip
a_budget = st.integers(0, 200)
a_minimum = st.integers(0, 6)


@given(some_lines, a_budget, a_minimum)
def test_invariants_of_the_cut(lines: list[TriageLine], budget: int, minimum: int) -> None:
    found = cut(lines, budget, minimum, "soft", None)
    chosen = [line for line in found.lines if line.action == "Selected"]
    protected = [line for line in lines if line.protected]
    assert sorted(line.name for line in found.lines) == sorted(line.name for line in lines)
    assert {line.name for line in protected} <= {line.name for line in chosen}
    assert len(chosen) >= min(minimum, len(lines))
    over = triage.tokens(chosen) > budget
    assert (found.verdict, bool(found.note)) == (("over_budget", True) if over else ("ok", False))
    # Agents beyond the budget are protected, or needed for the minimum.
    assert not over or len(chosen) <= max(minimum, len(protected))
    fitting = [line for line in lines if not line.protected and triage.tokens(protected) + line.est_tokens <= budget]
    if fitting and minimum <= len(protected):
        assert min(fitting, key=lambda line: (-line.score, line.name)).name in {line.name for line in chosen}


@given(some_lines, a_budget, a_minimum)
def test_cut_equals_a_literal_implementation_of_the_rule(lines: list[TriageLine], budget: int, minimum: int) -> None:
    names = {line.name for line in lines if line.protected}
    spent = sum(line.est_tokens for line in lines if line.protected)
    for line in sorted((line for line in lines if not line.protected), key=lambda line: (-line.score, line.name)):
        if spent + line.est_tokens <= budget or len(names) < minimum:
            names.add(line.name)
            spent += line.est_tokens
    assert set(selected(cut(lines, budget, minimum, "soft", None))) == names


@given(some_lines, a_budget, a_minimum, st.sampled_from(["soft", "hard"]), st.none() | st.just("why"), st.randoms())
def test_order_of_the_input_does_not_matter(
    lines: list[TriageLine], budget: int, minimum: int, enforcement: Enforcement, override: str | None, random: Any
) -> None:
    shuffled = random.sample(lines, len(lines))
    found = cut(shuffled, budget, minimum, enforcement, override)
    assert found == cut(lines, budget, minimum, enforcement, override)


@given(some_lines, a_budget, a_minimum, st.none() | st.just("why"))
def test_hard_enforcement_blocks_if_and_only_if_the_protected_do_not_fit(
    lines: list[TriageLine], budget: int, minimum: int, override: str | None
) -> None:
    found = cut(lines, budget, minimum, "hard", override)
    blocked = sum(line.est_tokens for line in lines if line.protected) > budget
    assert (found.verdict == "blocked") == blocked
    soft = cut(lines, budget, minimum, "soft", None)
    assert selected(found) == ([] if blocked else selected(soft))
    assert found.override is None
    assert not found.overridable
    assert soft.overridable == (len(selected(soft)) < len(lines))
    overridden = cut(lines, budget, minimum, "soft", "why")
    assert len(selected(overridden)) == len(lines)
    assert not overridden.overridable
    assert overridden.override == "why"


@pytest.mark.parametrize(
    ("agents", "place"),
    [
        ([an_agent("a"), an_agent("b", stage=3)], "agents[1].stage"),
        ([an_agent("a", stage=0)], "agents[0].stage"),
        ([an_agent("a", math.nan)], "agents[0].score"),
        ([an_agent("a"), an_agent("b"), an_agent("c", math.inf)], "agents[2].score"),
        ([an_agent("a", -math.inf)], "agents[0].score"),
        ([an_agent("a"), an_agent("b"), an_agent("a")], "agents[2].name"),
        ([an_agent("interflux:fd-a"), an_agent("fd-a")], "agents[1].name"),
        ([an_agent("fd-a"), an_agent("interflux:fd-a")], "agents[1].name"),
        ([an_agent("a", category="poetry")], "agents[0].category"),
        ([an_agent("a", category="")], "agents[0].category"),
        ([an_agent("")], "agents[0].name"),
        ([an_agent("a"), an_agent("x" * 201)], "agents[1].name"),
        ([an_agent(f"a{number}") for number in range(1001)], "agents"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_input_error_names_the_place(agents: list[TriageAgent], place: str) -> None:
    with pytest.raises(BadInputError) as caught:
        lines_of(*agents)
    assert caught.value.message.startswith(place)
    assert caught.value.hint


def test_input_at_the_limits_is_allowed() -> None:
    assert lines_of() == []
    assert len(lines_of(*(an_agent(f"a{number}", -1e308) for number in range(1000)))) == 1000
    assert lines_of(an_agent("x" * 200))[0].category == "generated"


def test_slicing_halves_estimates() -> None:
    """Agents that always read everything are the exception. An agent's own setting takes precedence."""
    names = ("fd-performance", "fd-architecture", "fd-quality", "interflux:fd-quality", "oracle")
    everything = {"fd-architecture", "fd-quality", "interflux:fd-quality"}
    for said_of_all in (True, False):
        for said_of_one in (True, False, None):
            sliced = said_of_all if said_of_one is None else said_of_one
            for name in names:
                (line,) = lines_of(an_agent(name, sliced=said_of_one), slicing=said_of_all)
                (whole,) = lines_of(an_agent(name))
                assert line.sliced == (sliced and name not in everything)
                assert line.est_tokens == (whole.est_tokens // 2 if line.sliced else whole.est_tokens)


@pytest.mark.parametrize(
    ("tokens", "budget", "line"),
    [
        (149_499, 149_499, "Budget: 149K / 149K (100%)"),
        (1_499, 60_000, "Budget: 1K / 60K (2%)"),
        (1_500, 60_500, "Budget: 2K / 61K (2%)"),
        (499, 1_000_000, "Budget: 0K / 1000K (0%)"),
        (300_000, 150_000, "Budget: 300K / 150K (200%)"),
    ],
)
def test_summary_line(tokens: int, budget: int, line: str) -> None:
    lines = [a_line("a", tokens, action="Selected"), a_line("b", 1_500)]
    assert triage.summary(lines, budget, constrained=False) == f"{line} | Deferred: 1 agents (2K est.)"
    marked = triage.summary(lines, budget, constrained=True)
    assert marked == f"{line} | Deferred: 1 agents (2K est.) [sprint-constrained]"
