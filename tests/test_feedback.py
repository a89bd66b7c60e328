"""Which review a sub-agent belongs to, and how past reviews went."""

from typing import Any

import pytest

from fluxbudgetd.model import Sample, Triage
from fluxbudgetd.policy import feedback
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.wire.messages import ReviewCalibration
from harness.values import NOW, a_line, a_sample, a_triage, launched

CUT = launched("interflux:fd-a", 1, sliced=True)
WHOLE = launched("fd-a", 1)
DEFERRED = a_line("fd-a", 1, sliced=True)


def ran(billing: int, **fields: Any) -> Sample:
    return a_sample(billing, **{"agent": "fd-a", "started_at": NOW + 5, **fields})


@pytest.mark.parametrize(
    ("triages", "selecting", "naming"),
    [
        ([a_triage(CUT, id="1")], "1", "1"),
        ([a_triage(DEFERRED, id="1")], None, "1"),
        ([a_triage(CUT, id="1"), a_triage(DEFERRED, id="2", at=NOW + 4)], "1", "2"),
        ([a_triage(CUT, id="1"), a_triage(WHOLE, id="2", at=NOW + 4)], "2", "2"),
        ([a_triage(WHOLE, id="2", at=NOW + 4), a_triage(CUT, id="1")], "2", "2"),
        ([a_triage(CUT, id="1"), a_triage(WHOLE, id="2", at=NOW + 6)], "1", "1"),
        ([a_triage(CUT, id="1", at=NOW + 6)], None, None),
        ([a_triage(launched("fd-b", 1), id="1")], None, None),
        ([a_triage(CUT, id="1", session="other")], None, None),
        ([a_triage(CUT, id="1", session=None, run="r")], "1", "1"),
        ([a_triage(CUT, id="1", session=None, run="other")], None, None),
        ([a_triage(CUT, id="1", session=None, run=None)], None, None),
        ([a_triage(CUT, id="1"), a_triage(WHOLE, id="2", session=None, run="r", at=NOW + 4)], "2", "2"),
        ([a_triage(CUT, id="1", at=NOW + 4), a_triage(WHOLE, id="2", session=None, run="r")], "1", "1"),
    ],
)
def test_latest_earlier_review_of_the_session_or_its_run(
    triages: list[Triage], selecting: str | None, naming: str | None
) -> None:
    agents = ReviewAgents(triages, {"s": ["r"]})
    for found, expected in (
        (agents.selecting(ran(10)), selecting),
        (agents.naming(ran(10)), naming),
    ):
        assert (None if found is None else found.triage.id) == expected


@pytest.mark.parametrize(
    ("instance", "started_at", "ended_at", "belongs"),
    [
        # A row has the time of its end. It may be missing, or cut to the second: then the key decides.
        ("row-8", NOW, None, True), ("row-7", NOW, None, False), ("row-8", NOW, NOW, True), ("row-7", NOW, NOW, False),
        ("row-7", NOW + 400_000, NOW + 900_000, True), ("row-8", NOW + 300_000, NOW + 400_000, False),
        # A transcript has the time of its first response.
        ("agent-x", NOW + 400_000, NOW + 900_000, False), ("agent-x", NOW + 500_000, NOW + 900_000, True),
    ],
)  # fmt: skip
def test_first_usage_is_compared_with_the_review(
    instance: str, started_at: int | None, ended_at: int | None, belongs: bool
) -> None:
    agents = ReviewAgents([a_triage(CUT, at=NOW + 500_000, last_key=7)], {})
    source = "interstat" if instance.startswith("row-") else "transcripts"
    sample = ran(10, instance=instance, started_at=started_at, ended_at=ended_at, source=source)
    assert (agents.selecting(sample) is not None) is belongs


def of_reviews(triages: list[Triage], samples: list[Sample]) -> dict[str, ReviewCalibration]:
    return feedback.of_reviews(triages, samples, ReviewAgents(triages, {}))


def test_feedback_by_input_type() -> None:
    """Two reviews of plans against 100 and 200, one of a repository of which an agent is still missing."""
    triages = [
        a_triage(launched("fd-a", 1), launched("fd-b", 1), a_line("fd-c", 1), id="1", budget=100),
        a_triage(launched("fd-a", 1), a_line("fd-b", 1), a_line("fd-c", 1), id="2", session="s2", budget=200),
        a_triage(launched("fd-a", 1), launched("fd-b", 1), id="3", session="s3", input_type="repo"),
        # It was repeated before an agent ran.
        a_triage(launched("fd-a", 1), a_line("fd-z", 1), id="4", session="s4"),
    ]
    samples = [
        ran(30), ran(20, agent="fd-b"), ran(1, agent="fd-b", instance="agent-2"),
        ran(150, session="s2"), ran(50, session="s2", agent="fd-c"),
        ran(7, session="s3"),
        # No review named it.
        ran(1_000, agent="other"), ran(1_000, session="elsewhere"),
    ]  # fmt: skip
    assert of_reviews(triages, samples) == {
        "plan": ReviewCalibration(
            reviews=2, measured=2, median_billing=126, median_pct=76, deferred=3, ran_anyway=1, overridden=0
        ),
        "repo": ReviewCalibration(
            reviews=1, measured=0, median_billing=None, median_pct=None, deferred=0, ran_anyway=0, overridden=0
        ),
    }
    assert of_reviews([], samples) == {}


def test_costs_are_compared_in_the_unit_of_the_review() -> None:
    """A budget of total tokens is compared with total tokens, and one of 0 with nothing."""
    triages = [
        a_triage(launched("fd-a", 1), id="1", cost_basis="total", budget=1_000),
        a_triage(launched("fd-a", 1), id="2", session="s2", budget=0),
    ]
    samples = [ran(30, total=500), ran(50, session="s2")]
    found = of_reviews(triages, samples)["plan"]
    assert (found.median_billing, found.median_pct) == (40, 50)


def test_agents_that_only_an_override_launched() -> None:
    """Of 40 + 40 + 40 + 40 tokens, 100 fit: two agents, or three if the minimum is three."""
    lines = [launched(f"fd-{name}", 40, stage=2) for name in "abcd"]
    for min_agents, verdict, expected in ((0, "overridden", 2), (3, "overridden", 1), (0, "ok", 0)):
        triage = a_triage(*lines, budget=100, min_agents=min_agents, verdict=verdict)
        assert of_reviews([triage], [ran(40)])["plan"].overridden == expected


def test_reaction_rounds_are_apart() -> None:
    """They have other budgets. An agent that runs again belongs to the later round."""
    triages = [a_triage(WHOLE, id="1"), a_triage(WHOLE, id="2", at=NOW + 100, round="reaction", budget=50)]
    found = of_reviews(triages, [ran(30), ran(5, instance="agent-2", started_at=NOW + 200)])
    assert [(kind, line.median_billing, line.median_pct) for kind, line in found.items()] == [
        ("plan", 30, 0), ("plan (reaction)", 5, 10),
    ]  # fmt: skip
