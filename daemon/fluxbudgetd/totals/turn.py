"""One check of the sources, which all requests that have arrived before it share."""

from collections.abc import Hashable

from fluxbudgetd.totals.account import RunAccount, Standing


class Turn:
    """Inside a `with` block, `is_first` is true once for each question; outside a block, it is always true.

    The server receives several requests, enters the block, and handles them. A source is then checked after all of
    these requests have arrived, so one check shows what was written before each of them. The standing of a run that
    follows from it also holds until the end of the block, unless a request changes the run. Nothing may be awaited in
    the block: a request that arrives meanwhile needs a new check.
    """

    def __init__(self) -> None:
        self._asked: set[Hashable] | None = None
        self._standings: dict[str, Standing] = {}

    def __enter__(self) -> None:
        self._asked = set()

    def __exit__(self, *_exception: object) -> None:
        self._asked = None
        self._standings.clear()

    def is_first(self, question: Hashable) -> bool:
        """Return True unless the question was asked in this block before."""
        if self._asked is None:
            return True
        if question in self._asked:
            return False
        self._asked.add(question)
        return True

    def standing_of(self, account: RunAccount) -> Standing | None:
        """Return the standing of a run that was noted in this block; None if there is none, or the run has changed."""
        known = self._standings.get(account.run.id)
        # A changed run has a new balance.
        return known if known is not None and known.balance is account.balance() else None

    def note_standing(self, standing: Standing) -> None:
        """Record a standing for the rest of the block; outside, do nothing."""
        if self._asked is not None:
            self._standings[standing.run.id] = standing
