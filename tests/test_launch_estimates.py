"""The estimate for a launch: samples of its model, of all models, the calibration, the category's default."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.model import AgentSample, Sample
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.estimates import AgentEstimate, for_launch
from fluxbudgetd.wire.messages import MAX_TOKENS, AgentCalibration, CostBasis, Spread
from harness.values import a_sample, samples_of

RULES = ReviewBudget()
OPUS, SONNET, HAIKU = "claude-opus-4-6", "claude-sonnet-4-5-20250929", "claude-haiku-4-5"


def calibrated(mean: int, sample_size: int = 5) -> AgentCalibration:
    """Return a calibration with this mean of billing tokens, and ten times as many in total."""
    billing, total = (Spread(mean=each, p50=1, p90=2) for each in (mean, mean * 10))
    return AgentCalibration(billing=billing, total=total, sample_size=sample_size)


def estimate(samples: list[Sample], model: str | None = OPUS, agent: str = "fd-x", **options: Any) -> AgentEstimate:
    known = {"calibrated": None, "rules": RULES, "basis": "billing", "slicing": False, **options}
    return for_launch(agent, "review", model, samples, **known)


def sliced(samples: list[Sample], **options: Any) -> AgentEstimate:
    return estimate(samples, slicing=True, **options)


def test_samples_of_the_launchs_model_come_first() -> None:
    """With fewer than three of them, the samples of all models count, then the calibration, then the default."""
    others = samples_of(HAIKU, 7_000, 8_000)
    assert estimate([*samples_of(OPUS, 100, 200, 301), *others]) == (200, "transcripts", 3, False, OPUS)
    assert estimate([*samples_of(OPUS, 100, 201), *others]) == (3_825, "transcripts", 4, False, None)
    assert estimate(others, calibrated=calibrated(55)) == (55, "calibrated", 5, False, None)
    assert estimate(others) == (40_000, "default", 0, False, None)


def test_samples_of_another_model_are_better_than_a_default() -> None:
    """Five runs of 250 000 tokens say more than the category's 40 000."""
    found = estimate(samples_of(OPUS, *[250_000] * 5), model=HAIKU)
    assert found == (250_000, "transcripts", 5, False, None)


def test_sliced_samples_do_not_enter_the_full_estimate() -> None:
    """Full 40 000 and sliced 10 000 stay what they are, before and after the multiplier of 0.25 is calibrated."""
    samples = [*samples_of(OPUS, *[40_000] * 3), *samples_of(OPUS, *[10_000] * 13, sliced=True)]
    for multiplier in (0.5, 0.25):
        rules = msgspec.structs.replace(RULES, slicing_multiplier=multiplier)
        assert estimate(samples, rules=rules)[:3] == (40_000, "transcripts", 3)
        assert sliced(samples, rules=rules)[:4] == (10_000, "transcripts", 13, True)


def test_reviews_and_reactions_are_kept_apart() -> None:
    """Reactions cost less. Calibration is about reviews."""
    reviews = samples_of(OPUS, *[40_000] * 3)
    reactions = samples_of(OPUS, *[5_000] * 3, round="reaction")
    assert estimate([*reviews, *reactions]) == (40_000, "transcripts", 3, False, OPUS)
    assert estimate([*reviews, *reactions], round_="reaction") == (5_000, "transcripts", 3, False, OPUS)
    few = estimate([*reviews, *reactions[1:]], round_="reaction", calibrated=calibrated(55))
    assert few == (40_000, "default", 0, False, None)


def test_multiplier_applies_to_the_full_estimate_of_a_sliced_agent() -> None:
    """It does while there are fewer than three sliced samples, whatever the full estimate comes from."""
    few = samples_of(OPUS, 9, 9, sliced=True)
    assert sliced([*few, *samples_of(OPUS, *[40_001] * 3)]) == (20_001, "transcripts", 3, True, OPUS)
    assert sliced(few, calibrated=calibrated(301)) == (151, "calibrated", 5, True, None)
    assert sliced(few) == (20_000, "default", 0, True, None)


def test_sliced_samples_of_all_models_come_before_the_multiplier() -> None:
    full = samples_of(OPUS, *[40_000] * 3)
    assert sliced([*full, *samples_of(HAIKU, 7, 7, 7, sliced=True)]) == (7, "transcripts", 3, True, None)


def test_sliced_samples_alone_say_nothing_about_the_full_cost() -> None:
    samples = samples_of(OPUS, *[10_000] * 5, sliced=True)
    assert estimate(samples, calibrated=calibrated(77))[:2] == (77, "calibrated")
    assert estimate(samples)[:2] == (40_000, "default")


@pytest.mark.parametrize("agent", ["fd-architecture", "fd-quality", "interflux:fd-quality"])
def test_agents_that_read_everything_are_never_sliced(agent: str) -> None:
    samples = [*samples_of(OPUS, 40, 40, 40), *samples_of(OPUS, 9, 9, 9, sliced=True)]
    assert sliced(samples, agent=agent)[::3] == (40, False)


def test_calibration_of_fewer_than_three_samples_does_not_count() -> None:
    assert estimate([], calibrated=calibrated(55, sample_size=2)).source == "default"
    assert estimate([], calibrated=calibrated(55, sample_size=3)).source == "calibrated"


@pytest.mark.parametrize(("basis", "tokens", "of_calibration"), [("billing", 200, 55), ("total", 2_000, 550)])
def test_estimates_are_in_the_basis_asked_for(basis: CostBasis, tokens: int, of_calibration: int) -> None:
    assert estimate(samples_of(OPUS, 100, 200, 300), basis=basis).tokens == tokens
    assert estimate([], calibrated=calibrated(55), basis=basis).tokens == of_calibration


@pytest.mark.parametrize(
    ("of_samples", "source"),
    [
        ("ttt", "transcripts"),
        ("iii", "interstat"),
        ("tit", "samples"),
    ],
)
def test_source_is_that_of_the_samples_used(of_samples: str, source: str) -> None:
    names = {"t": "transcripts", "i": "interstat"}
    samples = [a_sample(5, model=OPUS, source=names[letter]) for letter in of_samples]
    unused = [a_sample(5, model=HAIKU), a_sample(5, model=OPUS, sliced=True, source="interstat")]
    assert estimate([*samples, *unused]).source == source


@pytest.mark.parametrize(
    ("asked", "name", "matches"),
    [
        ("claude-opus-4-6", "claude-opus-4-6", True),
        ("claude-opus-4-6[1m]", "claude-opus-4-6", True),
        ("claude-sonnet-4-5", SONNET, True),
        ("claude-opus-4-6", "claude-opus-4-5", False),
        ("sonnet", SONNET, True),
        ("sonnet[1m]", SONNET, True),
        ("haiku", "claude-3-5-haiku-20241022", True),
        ("opus", "us.anthropic.claude-opus-4-6-v1:0", True),
        ("opus", SONNET, False),
        ("son", SONNET, False),
        ("opus", "", False),
        ("", "", False),
        (None, "", False),
    ],
)
def test_names_of_models(asked: str | None, name: str, matches: bool) -> None:
    """Aliases ask for a family of models. A sample whose model is not known belongs to none."""
    found = estimate(samples_of(name, 5, 5, 5), model=asked)
    assert found.model == (asked if matches else None)


def test_huge_estimates_are_capped() -> None:
    assert estimate(samples_of(OPUS, *[MAX_TOKENS * 2] * 3)).tokens == MAX_TOKENS


def test_history_of_an_agent() -> None:
    """Means of at least three samples of any model; sliced ones apart."""
    found = estimates.history([*samples_of(OPUS, 100, 200), *samples_of(HAIKU, 303)])
    assert (found.est_billing, found.est_tokens, found.sample_size, found.source) == (201, 2_010, 3, "transcripts")
    assert (found.sliced_billing, found.sliced_tokens, found.sliced_size) == (None, None, None)
    mixed = [a_sample(7, source="interstat"), *samples_of(OPUS, 10, 20, 30, sliced=True)]
    found = estimates.history(mixed)
    assert (found.est_billing, found.est_tokens, found.sample_size, found.source) == (None, None, 1, "samples")
    assert (found.sliced_billing, found.sliced_tokens, found.sliced_size) == (20, 200, 3)


some_samples = st.lists(
    st.builds(
        lambda tokens, model, sliced: a_sample(tokens, model=model, sliced=sliced),
        st.integers(1, 10**6), st.sampled_from([OPUS, SONNET, HAIKU, ""]), st.booleans(),
    ),
    max_size=20,
)  # fmt: skip


@given(some_samples, st.sampled_from([OPUS, "sonnet", None]))
def test_full_estimate_ignores_everything_sliced(samples: list[Sample], model: str | None) -> None:
    """Neither sliced samples nor the multiplier nor the order of the samples change it."""
    full = [each for each in samples if not each.sliced]
    rules = msgspec.structs.replace(RULES, slicing_multiplier=0.01)
    assert estimate(samples, model) == estimate(full, model) == estimate(full[::-1], model, rules=rules)


@given(some_samples, st.sampled_from([OPUS, "sonnet", None]), st.booleans())
def test_mean_lies_between_the_costs_that_it_is_of(samples: list[Sample], model: str | None, slicing: bool) -> None:
    """It is of at least three samples, and of sliced or of full ones, never of both."""
    found = estimate(samples, model, slicing=slicing)
    kind = [each for each in samples if each.sliced == slicing]
    own = [each for each in kind if model and estimates.is_of_model(each.model, model)]
    used = next((some for some in (own, kind) if len(some) >= 3), None)
    if used is not None:
        costs = [each.billing for each in used]
        assert found.sample_size == len(used)
        assert min(costs) <= found.tokens <= max(costs)
    elif not slicing:
        assert (found.tokens, found.source, found.sample_size) == (40_000, "default", 0)
    else:
        full = estimate(samples, model)
        assert found.tokens == estimates.times(full.tokens, RULES.slicing_multiplier)
        assert found.sample_size == full.sample_size


@given(st.lists(st.integers(1, 10**9), min_size=3, max_size=20))
def test_mean_is_rounded_as_the_existing_estimator_does(costs: list[int]) -> None:
    rows = [AgentSample(agent="fd-x", rows=1, billing=cost, total=cost * 10) for cost in costs]
    known = estimates.measured(rows)["fd-x"]
    samples = samples_of(OPUS, *costs)
    assert estimate(samples, basis="billing").tokens == known.est_billing
    assert estimate(samples, basis="total").tokens == known.est_tokens
