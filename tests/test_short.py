"""Token counts, shortened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.short import short


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1k"), (1099, "1k"), (1100, "1.1k"), (1899, "1.8k"), (12_345, "12.3k"),
        (99_999, "99.9k"), (100_000, "100k"), (208_999, "208k"), (999_999, "999k"), (1_000_000, "1M"),
        (1_250_000, "1.2M"), (2_000_000, "2M"), (10**9, "1G"), (2**63 - 1, "9.2E"), (10**21, "1000E"), (-5, "0"),
        (-1234, "0"),
    ],
)  # fmt: skip
def test_shortened_numbers_by_example(count: int, text: str) -> None:
    assert short(count) == text


@given(st.integers(0, 2**63 - 1))
def test_shortened_numbers_fit_into_a_column(count: int) -> None:
    assert len(short(count)) <= len("99.9k")
