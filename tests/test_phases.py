"""The rules for phases: estimates, shares of a budget, provisional spend, the next phase, and checks."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.config.schema import PhaseEstimates, RunDefaults, Stage, Stages
from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Attachment, Counts, PhaseRecord, Stint, Timeline
from fluxbudgetd.policy import advance, attribution, budget, phases
from fluxbudgetd.wire.messages import CostBasis, Enforcement, PhaseCalibration, Spread
from harness.values import NOW, a_record, a_run

#: phase → its macro-stage, and its estimate without measurements
DEFAULT = {
    "brainstorm": ("discover", 30_000),
    "brainstorm-reviewed": ("design", 15_000),
    "strategized": ("design", 25_000),
    "planned": ("design", 35_000),
    "plan-reviewed": ("design", 50_000),
    "executing": ("build", 150_000),
    "shipping": ("ship", 100_000),
    "reflect": ("reflect", 10_000),
    "done": ("done", 5_000),
}
CHAIN = tuple(DEFAULT)


def left(phase: str, since: int, until: int, tokens: int = 0) -> PhaseRecord:
    """Return a completed phase."""
    return PhaseRecord(
        phase=phase, since=since, until=until, measured=Counts(input=tokens), estimate=100, source="table",
        sample_size=0,
    )  # fmt: skip


def calibrated(sample_size: int) -> dict[str, PhaseCalibration]:
    return {
        "executing": PhaseCalibration(
            billing=Spread(mean=111, p50=1, p90=2), total=Spread(mean=999, p50=3, p90=4), sample_size=sample_size
        )
    }


def test_default_chain() -> None:
    assert RunDefaults().phases == CHAIN
    assert [phases.macro_stage(phase) for phase in CHAIN] == [stage for stage, _ in DEFAULT.values()]
    assert phases.MACRO_STAGES == ("discover", "design", "build", "ship", "reflect", "done")
    assert phases.macro_stage("polishing") not in phases.MACRO_STAGES


def test_macro_stages_of_other_chains() -> None:
    """Clavain's shell library and intercore's chains have phases of their own."""
    known = {"strategy-reviewed": "design", "goal-formed": "discover", "review": "ship", "polish": "ship"}
    assert {phase: phases.macro_stage(phase) for phase in known} == known


@pytest.mark.parametrize("basis", ["billing", "total"])
def test_estimates_without_measurements(basis: CostBasis) -> None:
    for phase, (_, tokens) in {**DEFAULT, "polishing": ("other", 30_000)}.items():
        assert phases.estimate(phase, basis, PhaseEstimates(), {}) == (tokens, "table", 0)


@pytest.mark.parametrize(("basis", "mean"), [("billing", 111), ("total", 999)])
def test_calibration_needs_three_measured_runs(basis: CostBasis, mean: int) -> None:
    table = PhaseEstimates()
    for runs in (0, 1, 2):
        assert phases.estimate("executing", basis, table, calibrated(runs)) == (150_000, "table", 0)
    for runs in (3, 4, 100):
        assert phases.estimate("executing", basis, table, calibrated(runs)) == (mean, "calibration", runs)
    assert phases.estimate("shipping", basis, table, calibrated(3)) == (100_000, "table", 0)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1_000_000, [100_000, 250_000, 400_000, 200_000, 50_000]),
        (250_000, [25_000, 62_500, 100_000, 50_000, 12_500]),
        (25_000, [2_500, 6_250, 10_000, 5_000, 1_250]),
        # From here on, shares and floors exceed the budget (24 200, then 23 000) and are scaled down.
        (23_000, [2_185, 5_464, 9_504, 4_752, 1_092]),
        (20_000, [1_739, 4_347, 8_695, 4_347, 869]),
        (1, [0, 0, 0, 0, 0]),
        (0, [0, 0, 0, 0, 0]),
    ],
)
def test_allocations(tokens: int, expected: list[int]) -> None:
    names = ("discover", "design", "build", "ship", "reflect")
    assert phases.allocations(Stages(), tokens) == dict(zip(names, expected, strict=True))


@st.composite
def some_stages(draw: st.DrawFn) -> Stages:
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=5, max_size=5)))
    floors = draw(st.lists(st.integers(0, 50_000) | st.integers(0, 2**63 - 1), min_size=5, max_size=5))
    one, two, three, four, five = (
        Stage(high - low, floor) for (low, high), floor in zip(pairwise([0, *cuts]), floors, strict=True)
    )
    return Stages(discover=one, design=two, build=three, ship=four, reflect=five)


@given(some_stages(), st.integers(0, 200_000) | st.integers(0, 2**63 - 1))
def test_allocations_never_exceed_the_budget(stages: Stages, tokens: int) -> None:
    """Unscaled, each is its share or its floor. Scaled down, each loses the same fraction, rounded to a token."""
    found = phases.allocations(stages, tokens)
    wanted = {
        name: max(tokens * getattr(stages, name).share // 100, getattr(stages, name).floor)
        for name in ("discover", "design", "build", "ship", "reflect")
    }
    assert sum(found.values()) <= tokens
    scale = min(Fraction(1), Fraction(tokens, sum(wanted.values()) or 1))
    assert found.keys() == wanted.keys()
    for name, share in found.items():
        assert 0 <= wanted[name] * scale - share < 1
        assert scale < 1 or share == wanted[name]


@pytest.mark.parametrize(
    ("measured", "stints", "counting"),
    [
        (set(), [], ["one", "two"]),
        ({"one"}, [], ["two"]),
        ({"one", "two", "three"}, [], []),
        # A measured session that worked in the phase ends its estimate, even if it was measured in a later phase.
        (set(), [Stint(5, None, measured=True)], []),
        (set(), [Stint(5, 10, measured=True)], ["two"]),
        (set(), [Stint(12, 13, measured=True)], ["one"]),
        # A session that was not measured, joined later, or had left before does not.
        (set(), [Stint(5, None, measured=False)], ["one", "two"]),
        ({"three"}, [Stint(20, None, measured=True)], ["one", "two"]),
        (set(), [Stint(-9, 0, measured=True)], ["one", "two"]),
        (set(), [Stint(10, None, measured=True)], ["one"]),
    ],
)
def test_estimate_counts_until_the_first_measurement(
    measured: set[str], stints: list[Stint], counting: list[str]
) -> None:
    completed = [left("one", 0, 10), left("two", 10, 20)]
    assert [record.phase for record in phases.provisional(completed, measured, stints)] == counting


some_stints = st.lists(
    st.builds(
        lambda since, length, measured: Stint(since, None if length is None else since + length, measured),
        st.integers(0, 30), st.none() | st.integers(1, 10), st.booleans(),
    ),
    max_size=4,
)  # fmt: skip


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=6, unique=True).map(sorted),
    st.sets(st.sampled_from(CHAIN)),
    some_stints,
)
def test_never_both_measured_and_estimated(times: list[int], measured: set[str], stints: list[Stint]) -> None:
    """An estimate counts only if no measured session was attached at any moment of the phase."""
    completed = [left(phase, since, until) for phase, (since, until) in zip(CHAIN, pairwise(times), strict=False)]
    counting = {record.phase for record in phases.provisional(completed, measured, stints)}
    assert not counting & measured
    for record in completed:
        worked = any(
            one.measured and one.since <= at and (one.until is None or at < one.until)
            for at in range(record.since, record.until)
            for one in stints
        )
        assert (record.phase in counting) == (record.phase not in measured and not worked)


@pytest.mark.parametrize(
    ("counts_from", "records", "counting"),
    [
        (0, (5,), []),
        (0, (15, 25), ["one"]),
        (0, (25,), ["one", "two"]),
        (0, (None,), ["one", "two"]),
        (12, (5, 15), ["one"]),
        (12, (5, 25), ["one", "two"]),
        (12, (5,), ["one", "two"]),
        (30, (5, 15), ["one", "two"]),
    ],
)
def test_session_works_from_the_first_record_that_counts(
    counts_from: int, records: tuple[int | None, ...], counting: list[str]
) -> None:
    """An attachment may count usage from before it was made. That ends the estimates of the phases it is from."""
    completed = [left("one", 0, 10), left("two", 10, 20)]
    attached = Attachment(session="s", run="r", since=30, until=None, counts_from=counts_from, origin="asked")
    first_record = attribution.earliest([a_record(at=at) for at in records], (attached,))
    stint = attribution.stint(attached, first_record, measured=True)
    assert [record.phase for record in phases.provisional(completed, set(), [stint])] == counting


def test_check_of_another_phase_is_stale() -> None:
    run = a_run(phase="shipping")
    assert phases.stale_refusal(run, "shipping") is None
    assert phases.stale_refusal(run, "executing") == "stale_phase|executing|Phase already advanced to shipping"
    assert phases.stale_refusal(run, "brainstorm") == "stale_phase|brainstorm|Phase already advanced to shipping"
    ahead = phases.stale_refusal(run, "done")
    assert ahead is not None
    assert ahead.startswith("stale_phase|done|")
    assert "advanced" not in ahead
    with pytest.raises(BadInputError, match="polishing") as caught:
        phases.stale_refusal(run, "polishing")
    assert "shipping" in caught.value.hint


def test_next_phase() -> None:
    for here, following in pairwise(CHAIN):
        assert phases.next_phase(a_run(phase=here), None) == following
    assert phases.next_phase(a_run(phase="planned"), "plan-reviewed") == "plan-reviewed"
    assert phases.next_phase(a_run(phase="planned"), "done") == "done"
    own = a_run(phases=("draft", "polishing"), phase="draft")
    assert phases.next_phase(own, None) == "polishing"


@pytest.mark.parametrize("wanted", ["brainstorm", "planned", "polishing", ""])
def test_phase_that_does_not_follow_is_refused(wanted: str) -> None:
    with pytest.raises(BadInputError) as caught:
        phases.next_phase(a_run(phase="planned"), wanted)
    assert "executing" in caught.value.hint


def test_last_phase_has_no_next() -> None:
    for wanted in (None, "done"):
        with pytest.raises(BadInputError, match="last"):
            phases.next_phase(a_run(phase="done"), wanted)
    for status in ("done", "cancelled"):
        with pytest.raises(ConflictError):
            phases.next_phase(a_run(status=status), None)


def timeline(times: list[int]) -> Timeline:
    """Return the timeline of a run that entered its phases at these times."""
    completed = tuple(left(name, *span) for name, span in zip(CHAIN, pairwise(times), strict=False))
    return Timeline(a_run(started_at=times[0], phase=CHAIN[len(completed)], scope="b"), completed)


def test_tokens_belong_to_the_phase_of_their_time() -> None:
    """One session works through three phases."""
    run = timeline([NOW, NOW + 10, NOW + 20])
    ats = (NOW - 5, NOW, NOW + 9, NOW + 10, NOW + 19, NOW + 20, NOW + 999, None)
    records = [a_record(key=i, at=at, bead="b", input=10**i, output=10**i) for i, at in enumerate(ats)]
    cells = attribution.tally(records, {"b": [run.run]}, (), {run.run.id: run})
    assert {cell.phase: counts.billing for cell, counts in cells.items()} == {
        "brainstorm": 222,
        "brainstorm-reviewed": 22_000,
        "strategized": 22_200_000,
    }
    assert sum(counts.billing for counts in cells.values()) == sum(one.input + one.output for one in records)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(
        st.tuples(st.none() | st.integers(-5, 50), st.sampled_from(["", "executing", "x"]), st.integers(0, 99)),
        max_size=12,
    ),
)
def test_every_token_is_in_exactly_one_phase(times: list[int], rows: list[tuple[int | None, str, int]]) -> None:
    run = timeline(times)
    expected: dict[str, int] = {}
    for at, own, tokens in rows:
        entered = [phase for phase, since in zip(CHAIN, times, strict=False) if at is None or since <= at]
        phase = own if own in CHAIN else (entered or CHAIN)[-1 if entered else 0]
        expected[phase] = expected.get(phase, 0) + tokens
    records = [a_record(key=i, at=at, bead="b", phase=own, output=n) for i, (at, own, n) in enumerate(rows)]
    cells = attribution.tally(records, {"b": [run.run]}, (), {run.run.id: run})
    assert {cell.phase: counts.billing for cell, counts in cells.items()} == expected


def test_check_of_an_exceeded_budget_is_refused_every_time() -> None:
    run = a_run(token_budget=250_000, phase="executing")
    for _ in range(3):
        found = advance.checked(run, budget.balance(run, 260_000), None, NOW)
        assert not found.allowed
        assert found.refusal == "budget_exceeded|executing|260000/250000 billing tokens"
    assert not advance.checked(run, budget.balance(run, 250_000), None, NOW).allowed
    assert advance.checked(run, budget.balance(run, 249_999), None, NOW).allowed
    assert advance.checked(run, budget.balance(run, 200_000, provisional=60_000), "", NOW).refusal is not None
    unlimited = a_run(token_budget=None)
    assert advance.checked(unlimited, budget.balance(unlimited, 10**12), None, NOW).allowed


@pytest.mark.parametrize(("enforcement", "passes"), [("soft", True), ("hard", False)])
def test_override(enforcement: Enforcement, passes: bool) -> None:
    run = a_run(token_budget=100, phase="planned", enforcement=enforcement)
    found = advance.advanced(run, budget.balance(run, 100), "planned", "release day", NOW)
    assert (found.allowed, found.override) == (passes, "release day" if passes else None)
    assert passes or (found.refusal == "budget_exceeded|planned|100/100 billing tokens" and found.note)
    not_needed = advance.advanced(run, budget.balance(run, 99), "planned", "release day", NOW)
    assert (not_needed.allowed, not_needed.override) == (True, None)


def test_stale_phase_cannot_be_overridden() -> None:
    """This does not depend on whether the budget is exceeded."""
    run = a_run(token_budget=100, phase="shipping")
    for spent in (0, 100):
        found = advance.advanced(run, budget.balance(run, spent), "executing", "release day", NOW)
        assert found.refusal == "stale_phase|executing|Phase already advanced to shipping"
        assert found.override is None


def test_reasons_are_sentences() -> None:
    assert advance.reason(None) is advance.reason("") is None
    assert advance.reason("x" * 1000) == "x" * 1000
    assert advance.reason("x" * 1001) == "x" * 1000
    assert advance.reason(" \n") is None
