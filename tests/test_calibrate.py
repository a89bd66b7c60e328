"""The rules of calibration: spreads, measured phases, and what slicing saves."""

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxbudgetd.model import Counts, PhaseRecord, Sample, Timeline, Triage
from fluxbudgetd.policy import calibrate
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.wire.messages import AgentCalibration, PhaseCalibration, RunStatus, SlicingCalibration, Spread, encode
from harness.values import NOW, a_run, a_sample, a_triage, launched


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7], (7, 7, 7)), ([1, 2], (2, 1, 2)), ([3, 1, 2], (2, 2, 3)), ([10, 20, 30, 40], (25, 20, 40)),
        (range(1, 11), (6, 5, 9)), (range(1, 12), (6, 6, 10)), (range(1, 101), (51, 50, 90)), ([0, 0, 1], (0, 0, 1)),
    ],
)  # fmt: skip
def test_spread_of_values(values: list[int], expected: tuple[int, int, int]) -> None:
    mean, p50, p90 = expected
    assert calibrate.spread(values) == Spread(mean=mean, p50=p50, p90=p90)


@given(st.lists(st.integers(0, 2**70), min_size=1))
def test_percentiles_are_costs_that_occurred(values: list[int]) -> None:
    """At least p % of the values are no higher, and fewer than p % are lower, even for huge numbers."""
    found = calibrate.spread(values)
    for p, value in ((50, found.p50), (90, found.p90)):
        assert value in values
        assert sum(one <= value for one in values) * 100 >= p * len(values)
        assert sum(one < value for one in values) * 100 < p * len(values)
    assert Fraction(-1, 2) < found.mean - Fraction(sum(values), len(values)) <= Fraction(1, 2)


def timeline(status: RunStatus) -> Timeline:
    """Return the timeline of a run in its second phase."""
    done = PhaseRecord(
        phase="brainstorm", since=NOW, until=NOW + 9, measured=Counts(), estimate=5, source="table", sample_size=0
    )
    return Timeline(a_run(status=status, phase="brainstorm-reviewed"), (done,))


def test_only_completed_and_measured_phases_count() -> None:
    """All phases of a finished run are completed."""
    some = Counts(records=1, input=3)
    sums = {
        "brainstorm": some,
        "brainstorm-reviewed": some,
        "named-by-a-row": some,
        "done": Counts(records=1, pending=1),
    }
    assert calibrate.measured_phases(timeline("active"), sums) == {"brainstorm": some}
    assert calibrate.measured_phases(timeline("cancelled"), sums) == {"brainstorm": some}
    assert calibrate.measured_phases(timeline("done"), sums).keys() == sums.keys() - {"done"}
    assert calibrate.measured_phases(timeline("active"), {"brainstorm": Counts(records=2, pending=2)}) == {}
    cached = Counts(cache_read=1)
    assert calibrate.measured_phases(timeline("active"), {"brainstorm": cached}) == {"brainstorm": cached}


def test_calibration_of_phases() -> None:
    runs = [
        {"planned": Counts(input=10, output=1, cache_read=100), "executing": Counts(output=5)},
        {"planned": Counts(input=20, output=2)},
        {},
        {"planned": Counts(input=30, cache_creation=3)},
    ]
    found = calibrate.phases(runs)
    assert list(found) == ["executing", "planned"]
    assert found["planned"] == PhaseCalibration(
        billing=Spread(mean=21, p50=22, p90=30), total=Spread(mean=55, p50=33, p90=111), sample_size=3
    )
    assert found["executing"].sample_size == 1


def test_huge_sums_are_capped() -> None:
    most = 2**63 - 1
    found = calibrate.phases([{"planned": Counts(input=most, output=most, cache_read=most)}])
    assert encode(found["planned"])


def a_cost(cost: int, agent: str = "fd-a", **fields: object) -> Sample:
    return a_sample(cost, agent=agent, started_at=NOW + 5, **fields)


def test_calibration_of_agents() -> None:
    """Sliced samples and reactions do not count: what an agent costs in a whole review is the point."""
    samples = [a_cost(cost) for cost in (10, 20, 60)] + [a_cost(1, sliced=True), a_cost(7, "fd-b")]
    samples += [a_cost(2, round="reaction")]
    assert calibrate.agents(samples) == {
        "fd-a": AgentCalibration(
            billing=Spread(mean=30, p50=20, p90=60), total=Spread(mean=300, p50=200, p90=600), sample_size=3
        ),
        "fd-b": AgentCalibration(
            billing=Spread(mean=7, p50=7, p90=7), total=Spread(mean=70, p50=70, p90=70), sample_size=1
        ),
    }
    assert calibrate.agents([a_cost(1, sliced=True)]) == {}


def test_calibration_of_too_many_agents() -> None:
    """Those with the most samples are kept, so that the calibration fits into a frame."""
    samples = [a_cost(1, f"a{number:05}") for number in range(calibrate.MOST_AGENTS + 1)] + [a_cost(1, "z")] * 2
    found = calibrate.agents(samples)
    assert len(found) == calibrate.MOST_AGENTS
    assert list(found)[-2:] == ["a00998", "z"]


#: The costs of a review's sliced sub-agents, by agent.
Review = Mapping[str, Sequence[int]]


def history(reviews: Sequence[Review], full: Review) -> tuple[list[Sample], ReviewAgents]:
    """Return the samples of sliced reviews, each in a session of its own, and of agents that read whole documents."""
    samples = [a_cost(cost, agent, session="whole") for agent, costs in full.items() for cost in costs]
    triages: list[Triage] = []
    for number, review in enumerate(reviews):
        lines = [launched(f"interflux:{agent}", 1, sliced=True) for agent in review]
        triages.append(a_triage(*lines, id=f"t{number}", session=f"s{number}"))
        samples += [
            a_cost(cost, agent, session=f"s{number}", sliced=True) for agent, costs in review.items() for cost in costs
        ]
    return samples, ReviewAgents(triages, {})


def found(reviews: Sequence[Review], full: Review, multiplier: float = 0.5) -> SlicingCalibration:
    return calibrate.slicing(*history(reviews, full), multiplier)


def test_ten_sliced_reviews_are_enough() -> None:
    """Nine reviews with thirty sliced agents each are not."""
    of_nine = found([{"fd-a": [30] * 30}] * 9, {"fd-a": [100] * 3})
    assert (of_nine.multiplier, of_nine.median, of_nine.sliced_reviews, of_nine.sliced_runs) == (None, 0.3, 9, 270)
    of_ten = found([{"fd-a": [30]}] * 10, {"fd-a": [100] * 3})
    assert of_ten == SlicingCalibration(
        multiplier=0.3, median=0.3, sliced_reviews=10, sliced_runs=10, full_runs=3, was=0.5
    )


@pytest.mark.parametrize(
    ("cost", "multiplier", "expected"),
    [
        (600, 0.5, None), (601, 0.5, 0.6), (400, 0.5, None), (399, 0.5, 0.4), (500, 0.5, None), (840, 0.7, None),
        (841, 0.7, 0.84), (560, 0.7, None), (559, 0.7, 0.56), (120, 0.1, None), (121, 0.1, 0.12), (3000, 1.0, 3.0),
    ],
)  # fmt: skip
def test_multiplier_more_than_20_percent_off_is_replaced(cost: int, multiplier: float, expected: float | None) -> None:
    assert found([{"fd-a": [cost]}] * 10, {"fd-a": [1000]}, multiplier).multiplier == expected


def test_each_review_counts_once() -> None:
    """A review with a hundred agents has no more weight than one with a single agent."""
    crowd = {"fd-a": [10] * 100}
    assert found([crowd] * 4 + [{"fd-a": [30]}] * 7, {"fd-a": [100]}).multiplier == 0.3
    # Within a review, the median of all sliced agents counts.
    mixed = {"fd-a": [30], "fd-b": [1], "fd-c": [20]}
    assert found([mixed] * 10, {"fd-a": [100], "fd-b": [10], "fd-c": [10]}).multiplier == 0.3


def test_agents_are_compared_with_their_own_median() -> None:
    """Other agents do not count, and neither does a mean, which one expensive run would raise."""
    full = {"fd-a": [100, 90, 9_000], "fd-b": [1_000, 3_000], "fd-c": [1]}
    assert found([{"fd-a": [30]}] * 5 + [{"fd-b": [600]}] * 5, full).multiplier == 0.3
    # The median of eleven reviews, eight of which are 0.5.
    assert found([{"fd-a": [50]}] * 8 + [{"fd-a": [1]}] * 3, full).multiplier is None


def test_sliced_agents_without_unsliced_samples_do_not_count() -> None:
    assert found([{"fd-a": [30]}] * 9 + [{"fd-new": [1]}] * 50, {"fd-a": [100]}).sliced_reviews == 9
    nothing = calibrate.slicing([], ReviewAgents([], {}), 0.5)
    assert nothing == SlicingCalibration(
        multiplier=None, median=None, sliced_reviews=0, sliced_runs=0, full_runs=0, was=0.5
    )
    # Samples without billing tokens do not count either.
    assert found([{"fd-a": [30]}] * 9 + [{"fd-a": [0]}], {"fd-a": [100]}).sliced_reviews == 9
    assert found([{"fd-a": [30]}] * 10, {"fd-a": [100, 0, 0, 0]}).multiplier == 0.3
    # Nor do reactions.
    samples, reviewed = history([{"fd-a": [30]}] * 10, {"fd-a": [100]})
    reactions = [a_cost(1, round="reaction", session="whole") for _ in range(5)]
    assert calibrate.slicing([*samples, *reactions], reviewed, 0.5).multiplier == 0.3
    # Neither do sliced samples of which no review is known.
    samples, _ = history([{"fd-a": [30]}] * 10, {"fd-a": [100]})
    assert calibrate.slicing(samples, ReviewAgents([], {}), 0.5).sliced_reviews == 0


costs = st.lists(st.integers(1, 200), min_size=1, max_size=4)
one_review = st.dictionaries(st.sampled_from(["fd-a", "fd-b", "fd-c"]), costs, min_size=1)
some_reviews = st.lists(one_review, max_size=14) | st.builds(
    lambda review, times: [review] * times, one_review, st.integers(9, 11)
)
whole_documents = st.fixed_dictionaries({}, optional={"fd-a": costs, "fd-b": costs})


@settings(max_examples=50)
@given(some_reviews, whole_documents, st.sampled_from([0.01, 0.3, 0.5, 1.0, 10.0]), st.randoms(use_true_random=False))
def test_proposals(reviews: list[Review], full: Review, multiplier: float, chance: random.Random) -> None:
    """A proposal has enough reviews, and differs enough. It depends on ratios alone, and not on any order."""
    samples, reviewed = history(reviews, full)
    shown = calibrate.slicing(samples, reviewed, multiplier)
    assert shown.sliced_reviews == sum(bool(review.keys() & full.keys()) for review in reviews)
    assert (shown.median is None) == (shown.sliced_reviews == 0)
    if shown.multiplier is not None:
        assert shown.sliced_reviews >= 10
        assert 0.01 <= shown.multiplier <= 10
        assert shown.median is not None
        assert shown.median >= 1.2 * multiplier or shown.median <= 0.8 * multiplier
    chance.shuffle(samples)
    assert calibrate.slicing(samples, reviewed, multiplier) == shown
    dearer = [a_cost(each.input * 7, each.agent, session=each.session, sliced=each.sliced) for each in samples]
    assert calibrate.slicing(dearer, reviewed, multiplier) == shown


@pytest.mark.parametrize("cost", [1, 50_000])
def test_proposal_is_a_valid_multiplier(cost: int) -> None:
    """The configuration accepts it: above 0, at most 10."""
    proposed = found([{"fd-a": [cost]}] * 10, {"fd-a": [1_000]}).multiplier
    assert proposed is not None
    assert 0 < proposed <= 10


def a_proposal(multiplier: float | None, was: float = 0.5, reviews: int = 12) -> SlicingCalibration:
    return SlicingCalibration(
        multiplier=multiplier, median=0.3, sliced_reviews=reviews, sliced_runs=40, full_runs=50, was=was
    )


@pytest.mark.parametrize(
    ("proposal", "in_use", "announced", "expected"),
    [
        # Available, and said once.
        (a_proposal(0.31), 0.5, None, 0.31), (a_proposal(0.31), 0.5, 0.31, None),
        # Another proposal is announced only if it differs by more than 20 % from the one that was announced.
        (a_proposal(0.33), 0.5, 0.31, None), (a_proposal(0.38), 0.5, 0.31, 0.38),
        # Applied.
        (a_proposal(0.31), 0.31, 0.31, None), (a_proposal(0.31), 0.31, None, None),
        # Nothing to apply.
        (a_proposal(None), 0.5, None, None), (a_proposal(None, reviews=9), 0.3, None, None),
        # The configured multiplier fits again, and writing the calibration would bring it back.
        (a_proposal(None), 0.3, 0.3, 0.5),
        # A project or the plugin's file has another one in use: what would apply is not what is in use.
        (a_proposal(0.8), 0.7, None, None), (a_proposal(0.85), 0.7, None, 0.85),
    ],
)  # fmt: skip
def test_news_about_the_multiplier(
    proposal: SlicingCalibration, in_use: float, announced: float | None, expected: float | None
) -> None:
    assert calibrate.news(proposal, in_use, announced) == expected
