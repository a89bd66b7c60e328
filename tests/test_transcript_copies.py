"""Which of a response's copies count."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.model import Copy
from fluxbudgetd.sources.transcripts import merged


def copy_of(size: int, *, key: int = 1, sidechain: bool = False, file: int = 1, at: int | None = 5) -> Copy:
    return Copy(1, key, sidechain, file, at, "agent", "model", size, 0, 0, 0)


@pytest.mark.parametrize(
    ("copies", "kept"),
    [
        pytest.param([copy_of(1), copy_of(3), copy_of(2)], [1], id="the largest"),
        pytest.param([copy_of(3, key=1), copy_of(2, key=2)], [0, 1], id="each request"),
        pytest.param([copy_of(9, sidechain=True), copy_of(2)], [1], id="no sidechain beside a main one"),
        pytest.param(
            [copy_of(9, sidechain=True), copy_of(2, key=2), copy_of(1, key=3)], [1, 2], id="nor beside several"
        ),
        pytest.param(
            [copy_of(3, key=1, sidechain=True), copy_of(4, key=2, sidechain=True)], [1], id="sidechains by message"
        ),
        pytest.param([copy_of(3, at=7), copy_of(3, at=6)], [1], id="of equal ones the earliest"),
        pytest.param([copy_of(3, at=None), copy_of(3, at=6)], [1], id="a time before none"),
        pytest.param([copy_of(3, file=2), copy_of(3, file=1)], [1], id="of equal times the first file"),
        pytest.param([copy_of(3), copy_of(3)], [0], id="once"),
        pytest.param([copy_of(0)], [0], id="no tokens"),
    ],
)
def test_copies_that_count(copies: list[Copy], kept: list[int]) -> None:
    for order in itertools.permutations(copies):
        assert set(fold_all(order)) == {copies[index] for index in kept}


def fold_all(copies: Iterable[Copy]) -> tuple[Copy, ...]:
    kept: tuple[Copy, ...] = ()
    for copy in copies:
        gone, new = merged(kept, copy)
        assert set(gone) <= set(kept)
        assert not set(new) & set(kept)
        kept = (*(one for one in kept if one not in gone), *new)
    return kept


any_copy = st.builds(
    Copy,
    message=st.just(1),
    key=st.integers(1, 3),
    sidechain=st.booleans(),
    file=st.integers(1, 2),
    at=st.sampled_from((None, 1, 2)),
    agent=st.sampled_from("ab"),
    model=st.sampled_from(("", "m")),
    input=st.integers(0, 2),
    output=st.integers(0, 2),
    cache_read=st.integers(0, 1),
    cache_creation=st.integers(0, 1),
)


@given(st.lists(any_copy, max_size=8), st.randoms())
def test_order_and_repetition_do_not_matter(copies: list[Copy], random: Any) -> None:
    kept = fold_all(copies)
    again = copies * 2
    random.shuffle(again)
    assert set(fold_all(again)) == set(kept)
    assert len(kept) == len(set(kept))
    # The same result by plain grouping.
    own = [copy for copy in copies if not copy.sidechain]
    groups = {copy.key for copy in own} if own else {0}
    assert len(kept) == (len(groups) if copies else 0)
    for copy in kept:
        rivals = [one for one in own if one.key == copy.key] if own else copies
        assert copy in rivals
        assert copy.size == max(one.size for one in rivals)
        rivals = [one for one in rivals if one.size == copy.size]
        billing = copy.input + copy.output
        assert billing == max(one.input + one.output for one in rivals)
        rivals = [one for one in rivals if one.input + one.output == billing]
        assert copy.at == min((one.at for one in rivals if one.at is not None), default=None)
        assert copy.file == min(one.file for one in rivals if one.at == copy.at)
