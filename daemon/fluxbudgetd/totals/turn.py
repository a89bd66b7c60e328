"""One look at the sources for all requests that have arrived before it."""

from collections.abc import Callable, Hashable


class Turn:
    """Inside a `with` block, `once` asks each question once; outside, every time.

    The server receives several requests, enters the block, and handles them. A look at a source then comes after all of
    these requests, so it shows what was written before each of them. Nothing may be awaited in the block: a request
    that arrives meanwhile needs a new look.
    """

    def __init__(self) -> None:
        self._answers: dict[Hashable, int] | None = None

    def __enter__(self) -> None:
        self._answers = {}

    def __exit__(self, *_exception: object) -> None:
        self._answers = None

    def once(self, question: Hashable, ask: Callable[[], int]) -> int:
        """Return `ask()`; inside a block, what it returned when this question was asked first."""
        answers = self._answers
        if answers is None:
            return ask()
        answer = answers.get(question)
        if answer is None:
            answer = answers[question] = ask()
        return answer
