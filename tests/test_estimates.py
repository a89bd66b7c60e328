"""Estimates of agents, compared with the query of flux-drive's estimator on a real database."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import AgentSample
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.estimates import Measured
from fluxbudgetd.sources.interstat import InterstatSource, history
from harness.interstat import OLD_SCHEMA, Interstat

MODEL = "claude-opus-4-6"
MAX = 2**63 - 1
REFERENCE = """
SELECT CASE WHEN substr(agent_name, 1, 10) = 'interflux:' THEN substr(agent_name, 11) ELSE agent_name END AS agent,
       CAST(ROUND(AVG(total_tokens)) AS INTEGER),
       CAST(ROUND(AVG(COALESCE(input_tokens, 0) + COALESCE(output_tokens, 0))) AS INTEGER),
       COUNT(*)
FROM agent_runs WHERE (model = ? OR model IS NULL) AND total_tokens IS NOT NULL
GROUP BY agent HAVING COUNT(*) >= 3
"""

Row = tuple[str, str | None, Any, Any, Any]


class Table:
    """A database whose rows are replaced for each example, and a source that reads it."""

    def __init__(self, path: Path) -> None:
        self.writer = Interstat(path)
        self.reader = sqlite3.connect(path)

    def put(self, rows: list[Row]) -> None:
        self.writer.connection.execute("BEGIN")
        self.writer.connection.execute("DELETE FROM agent_runs")
        for agent, model, input_, output, total in rows:
            self.writer.insert("s", agent, model=model, input_tokens=input_, output_tokens=output, total_tokens=total)
        self.writer.connection.execute("COMMIT")

    def measured(self, model: str = MODEL) -> dict[str, Measured]:
        return estimates.measured(history.samples(self.reader, model))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    made = Table(tmp_path_factory.mktemp("history") / "metrics.db")
    yield made
    made.reader.close()
    made.writer.close()


tokens = st.none() | st.integers(0, 9) | st.integers(0, 10**12)
some_rows = st.lists(
    st.tuples(
        st.sampled_from(["fd-a", "interflux:fd-a", "interflux:interflux:fd-a", "fd-b", "interflux:", "Interflux:fd-a"]),
        st.sampled_from([MODEL, MODEL, None, "", "claude-opus-4-60", "haiku"]),
        tokens, tokens, tokens,
    ),
    max_size=25,
)  # fmt: skip


@given(some_rows, st.sampled_from([MODEL, "haiku", ""]))
def test_estimates_equal_the_existing_estimator(table: Table, rows: list[Row], model: str) -> None:
    table.put(rows)
    expected = {agent: Measured(*means) for agent, *means in table.reader.execute(REFERENCE, (model,))}
    assert table.measured(model) == expected


@pytest.mark.parametrize("wrong", [-1, -(2**63), 1.5, 1e300, "many", b"7", "12 000"])
def test_invalid_count_is_dropped(table: Table, wrong: object) -> None:
    """An invalid total drops its row; an invalid part counts as 0."""
    table.put([("fd-a", MODEL, 1, 2, wrong), *[("fd-a", MODEL, wrong, 4, 100)] * 2, ("fd-a", MODEL, 4, wrong, 100)])
    assert table.measured() == {"fd-a": Measured(est_tokens=100, est_billing=4, sample_size=3)}
    table.put([("fd-a", MODEL, 1, 2, wrong)] * 5)
    assert not table.measured()


def test_sums_do_not_overflow(table: Table) -> None:
    table.put([("fd-a", MODEL, MAX, 0, MAX), ("interflux:fd-a", None, 0, MAX, MAX)] * 3)
    assert table.measured() == {"fd-a": Measured(est_tokens=MAX, est_billing=MAX, sample_size=6)}


def test_input_and_output_together_do_not_overflow(table: Table) -> None:
    """The sum of two huge counts stays an integer."""
    table.put([("fd-a", MODEL, MAX, MAX, MAX)] * 3)
    assert table.measured()["fd-a"].est_billing == MAX


def test_name_stored_as_bytes_is_the_same_agent(table: Table) -> None:
    """In SQLite any column may hold a value of any type."""
    rows: list[Any] = [("fd-a", MODEL, 1, 1, 10), ("fd-a", MODEL, 1, 1, 10), (b"fd-a", MODEL, 1, 1, 10)]
    table.put(rows)
    assert table.measured()["fd-a"].sample_size == 3


def test_file_without_totals_has_no_estimates(tmp_path: Path) -> None:
    writer = Interstat(tmp_path / "metrics.db", OLD_SCHEMA)
    for _ in range(5):
        writer.insert("s", "fd-a", input_tokens=1, output_tokens=2, model=MODEL)
    source = InterstatSource(str(writer.path))
    assert source.samples(MODEL) == ()
    source.reopen()
    writer.close()


def test_absent_file_has_no_estimates(tmp_path: Path) -> None:
    source = InterstatSource(str(tmp_path / "metrics.db"))
    assert source.samples(MODEL) is None


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(0, 3, 0), (1, 3, 0), (2, 3, 1), (3, 2, 2), (5, 2, 3), (1, 2, 1), (7, 4, 2), (2**70 + 1, 2, 2**69 + 1)],
)
def test_means_are_rounded_half_away_from_zero(total: int, count: int, expected: int) -> None:
    assert estimates.mean(total, count) == expected


@pytest.mark.parametrize(
    ("tokens", "factor", "expected"),
    [
        (40_000, 0.5, 20_000),
        (5, 0.5, 3),
        (45, 0.7, 32),
        (15, 0.1, 2),
        (14, 0.1, 1),
        (3, 10.0, 30),
        (0, 0.5, 0),
        (7, 1, 7),
    ],
)
def test_multiplier_is_exactly_the_decimal_that_was_written(tokens: int, factor: float, expected: int) -> None:
    assert estimates.times(tokens, factor) == expected


def test_three_rows_are_enough_under_either_name() -> None:
    """The mean is over rows, not over names."""
    two, one = AgentSample("interflux:fd-a", 2, 20, 200), AgentSample("fd-a", 1, 3, 5)
    assert estimates.measured([two]) == {}
    assert estimates.measured([two, one]) == {"fd-a": Measured(est_tokens=68, est_billing=8, sample_size=3)}
    assert list(estimates.measured([AgentSample("z", 3, 1, 1), AgentSample("a", 3, 1, 1)])) == ["a", "z"]
