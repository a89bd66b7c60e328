"""The rules of calibration: spreads, measured phases, and what slicing saves."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import AgentRow, Counts, PhaseRecord, Timeline, Triage
from fluxbudgetd.policy import calibrate
from fluxbudgetd.wire.messages import PhaseCalibration, RunStatus, Spread, encode
from harness.values import NOW, a_run, a_triage, launched


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


Costs = dict[str, list[int]]


def history(sliced: Costs, full: Costs) -> tuple[list[Triage], list[AgentRow]]:
    """Return triages and the rows of the agents that they launched, each in a session of its own."""
    triages: list[Triage] = []
    rows: list[AgentRow] = []
    for is_sliced, costs in ((True, sliced), (False, full)):
        for agent, values in costs.items():
            for cost in values:
                session = f"s{len(rows)}"
                triages.append(a_triage(launched(agent, 1, sliced=is_sliced), session=session))
                rows.append(AgentRow(len(rows), session, NOW + 5, f"interflux:{agent}", cost))
    return triages, rows


def proposed(sliced: Costs, full: Costs, multiplier: float = 0.5) -> float | None:
    return calibrate.slicing(*history(sliced, full), multiplier).multiplier


def test_ten_sliced_runs_are_enough() -> None:
    found = calibrate.slicing(*history({"fd-a": [30] * 9}, {"fd-a": [100] * 3}), 0.5)
    assert (found.multiplier, found.median, found.sliced_runs, found.full_runs, found.was) == (None, 0.3, 9, 3, 0.5)
    found = calibrate.slicing(*history({"fd-a": [30] * 10}, {"fd-a": [100] * 3}), 0.5)
    assert (found.multiplier, found.median, found.sliced_runs, found.full_runs) == (0.3, 0.3, 10, 3)


@pytest.mark.parametrize(
    ("cost", "multiplier", "expected"),
    [
        (60, 0.5, None), (61, 0.5, 0.61), (40, 0.5, None), (39, 0.5, 0.39), (50, 0.5, None), (84, 0.7, None),
        (85, 0.7, 0.85), (56, 0.7, None), (55, 0.7, 0.55), (12, 0.1, None), (13, 0.1, 0.13), (300, 1.0, 3.0),
    ],
)  # fmt: skip
def test_multiplier_more_than_20_percent_off_is_replaced(cost: int, multiplier: float, expected: float | None) -> None:
    assert proposed({"fd-a": [cost] * 10}, {"fd-a": [100]}, multiplier) == expected


def test_runs_are_compared_with_the_same_agents_median() -> None:
    """Other agents do not count, and neither does a mean, which one expensive run would raise."""
    full = {"fd-a": [100, 90, 9_000], "fd-b": [1_000, 3_000], "fd-c": [1]}
    assert proposed({"fd-a": [30] * 5, "fd-b": [600] * 5}, full) == 0.3
    # The median of eleven ratios, eight of which are 0.5.
    assert proposed({"fd-a": [50] * 8 + [1, 1, 1]}, full) is None


def test_sliced_runs_without_full_ones_do_not_count() -> None:
    found = calibrate.slicing(*history({"fd-a": [30] * 9, "fd-new": [1] * 50}, {"fd-a": [100]}), 0.5)
    assert (found.multiplier, found.sliced_runs) == (None, 9)
    nothing = calibrate.slicing([], [], 0.5)
    assert (nothing.multiplier, nothing.median, nothing.sliced_runs, nothing.full_runs) == (None, None, 0, 0)
    # Rows that cost nothing do not count either.
    assert proposed({"fd-a": [30] * 9 + [0] * 9}, {"fd-a": [100]}) is None
    assert proposed({"fd-a": [30] * 10}, {"fd-a": [100, 0, 0, 0]}) == 0.3


def row(cost: int, session: str = "s") -> AgentRow:
    return AgentRow(cost, session, NOW + 5, "fd-a", cost)


def test_latest_triage_decides_if_a_run_is_sliced() -> None:
    """The last triage before the row that launched the agent in its session decides."""
    cut = launched("interflux:fd-a", 1, sliced=True)
    deferred = launched("fd-a", 1, sliced=True, action="Deferred (budget)")
    whole = launched("fd-a", 1)
    ratio_of = {
        (a_triage(cut),): 1,
        (a_triage(deferred),): 0,
        (a_triage(cut, session="other"),): 0,
        (a_triage(cut, session=None),): 0,
        (a_triage(cut, at=NOW + 6),): 0,
        (a_triage(whole), a_triage(cut, at=NOW + 4)): 1,
        (a_triage(cut, at=NOW + 4), a_triage(whole)): 1,
        (a_triage(cut), a_triage(whole, at=NOW + 4)): 0,
        (a_triage(cut), a_triage(whole, at=NOW + 6)): 1,
        (a_triage(cut), a_triage(launched("fd-b", 1), at=NOW + 4)): 1,
        (a_triage(cut), a_triage(deferred, at=NOW + 4)): 1,
    }
    for triages, sliced in ratio_of.items():
        found = calibrate.slicing(triages, [row(7), row(70, "elsewhere")], 0.5)
        assert found.sliced_runs == sliced, triages


def test_sliced_agents() -> None:
    triages = [
        a_triage(launched("interflux:fd-a", 1, sliced=True), launched("fd-b", 1)),
        a_triage(launched("fd-c", 1, sliced=True, action="Deferred (budget)"), launched("fd-d", 1, 2, sliced=True)),
    ]
    assert calibrate.sliced_agents(triages) == {"fd-a", "fd-d"}


@pytest.mark.parametrize("cost", [1, 50_000])
def test_proposal_is_a_valid_multiplier(cost: int) -> None:
    """The configuration accepts it: above 0, at most 10."""
    found = proposed({"fd-a": [cost] * 10}, {"fd-a": [1_000]})
    assert found is not None
    assert 0 < found <= 10
