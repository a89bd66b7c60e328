"""One look at the sources for all requests that have arrived before it."""

from collections.abc import Hashable


class Turn:
    """Inside a `with` block, `is_first` is true once for each question; outside, always.

    The server receives several requests, enters the block, and handles them. A look at a source then comes after all of
    these requests, so it shows what was written before each of them, and one look is enough. Nothing may be awaited in
    the block: a request that arrives meanwhile needs a new look.
    """

    def __init__(self) -> None:
        self._asked: set[Hashable] | None = None

    def __enter__(self) -> None:
        self._asked = set()

    def __exit__(self, *_exception: object) -> None:
        self._asked = None

    def is_first(self, question: Hashable) -> bool:
        """Return True unless the question was asked in this block before."""
        if self._asked is None:
            return True
        if question in self._asked:
            return False
        self._asked.add(question)
        return True
