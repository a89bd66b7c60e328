"""Which copies of a response count.

Copies outside sidechains take precedence: the largest of each request counts. If there are only sidechain copies, the
largest of them all counts. Of equally large copies, the one with more input and output counts, so that totals do not
depend on which file was found first. This is a maximum in a total order: the result depends neither on the order in
which copies are read, nor on how often each is read.
"""

from collections.abc import Iterable

from fluxbudgetd.model import Copy

_Rank = tuple[int, int, bool, int, int, str, str, int, int, int, int, int]


def merged(known: Iterable[Copy], new: Copy) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
    """Return which copies no longer count, and which now count, after a new copy is added to those of its message."""
    before = tuple(known)
    after = _kept((*before, new))
    return tuple(copy for copy in before if copy not in after), tuple(copy for copy in after if copy not in before)


def _kept(copies: Iterable[Copy]) -> tuple[Copy, ...]:
    best: dict[int, Copy] = {}
    sidechain: Copy | None = None
    for copy in copies:
        if copy.sidechain:
            sidechain = copy if sidechain is None else min(sidechain, copy, key=_rank)
        else:
            best[copy.key] = min(best.get(copy.key, copy), copy, key=_rank)
    if best or sidechain is None:
        return tuple(best.values())
    return (sidechain,)


def _rank(copy: Copy) -> _Rank:
    """Return the sort key of a copy, best first; only equal copies have equal ranks."""
    return (
        -copy.size,
        -(copy.input + copy.output),
        copy.at is None,
        copy.at or 0,
        copy.file,
        copy.agent,
        copy.model,
        copy.input,
        copy.output,
        copy.cache_read,
        copy.cache_creation,
        copy.key,
    )
