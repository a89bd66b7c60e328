"""Copies of responses made by hand, and the responses that they make."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from hypothesis import strategies as st

from fluxbudgetd.model import OWN, QUOTED, SIDECHAIN, Copy, ModelUsage, Response, SourceStatus, TranscriptReading
from fluxbudgetd.policy.responses import Known, Merge, has_usage, merge, records

EMPTY = Copy(0, 0, False, False, OWN, False, 1, 1, "main-session", "opus", 0, 0, 0, 0, 0, False)
STATUS = SourceStatus(name="transcripts", path="", state="ok", detail="", hint="", notes=())


def requested(message: int, request: int, **fields: Any) -> Copy:
    """Return a copy of a response that has a request id."""
    return msgspec.structs.replace(
        EMPTY, identity=10_000 + 100 * message + request, message=message, has_request=True, **fields
    )


def anonymous(message: int, line: int, **fields: Any) -> Copy:
    """Return a copy on a line that has no request id."""
    return msgspec.structs.replace(EMPTY, identity=line, message=message, **fields)


def reading_of(*copies: Copy, **fields: Any) -> TranscriptReading:
    """Return a reading that brought these copies."""
    return TranscriptReading(copies, fields.pop("files", ()), more=False, status=STATUS, **fields)


class Responses:
    """All responses of all sessions, merged with everything known."""

    def __init__(self) -> None:
        self.known: dict[int, Response] = {}
        self.aliases: dict[int, int] = {}
        self.sharing: set[str] = set()
        self.sums: dict[str, int] = {}
        self.born = 1

    def add(
        self,
        session: str,
        *copies: Copy,
        lost: Iterable[int] = (),
        renamed: Mapping[int, tuple[str, str]] | None = None,
    ) -> Merge:
        """Merge copies from a session's files; check that the deltas add up."""
        result = merge(session, copies, Known(self.known, self.aliases), self.born, set(lost), renamed)
        self.aliases.update(result.aliases)
        for key, response in result.responses.items():
            self.known.pop(key, None)
            if response is not None:
                self.known[key] = response
        self.born = result.born
        if result.is_shared:
            self.sharing.add(session)
        for name, delta in result.deltas.items():
            self.sums[name] = self.sums.get(name, 0) + sum(map(total, delta.new)) - sum(map(total, delta.gone))
        assert {name: amount for name, amount in self.sums.items() if amount} == self.totals
        return result

    def of(self, session: str) -> list[Response]:
        """Return a session's responses, oldest first."""
        return sorted((each for each in self.known.values() if each.session == session), key=lambda each: each.born)

    @property
    def totals(self) -> dict[str, int]:
        """Return session → tokens."""
        totals: dict[str, int] = {}
        for response in self.known.values():
            if has_usage(response):
                totals[response.session] = totals.get(response.session, 0) + total(response)
        return totals


def total(response: Response) -> int:
    """Return the tokens of a response's records."""
    return sum(record.counts.total for record in records(response))


@st.composite
def any_copy(draw: st.DrawFn, *, forks: bool = True, has_request: bool | None = None) -> Copy:
    """Return a copy of one of few messages, with few different counts, so that many belong together."""
    message = draw(st.integers(1, 3))
    below = draw(st.sampled_from(((), (ModelUsage("haiku", 1, 2, 0, 0, 0),))))
    fields = {
        "is_fork": forks and draw(st.sampled_from((False, False, False, True))),
        "place": draw(st.sampled_from((OWN, OWN, SIDECHAIN, QUOTED))),
        "is_final": draw(st.booleans()),
        "file": draw(st.integers(1, 2)),
        "agent": draw(st.sampled_from(("main-session", "agent-1"))),
        "at": draw(st.sampled_from((None, 1, 2))),
        "input": draw(st.integers(0, 2)),
        "output": draw(st.integers(0, 2)),
        "cache_read": draw(st.integers(0, 1)),
        "below": below,
    }
    if draw(st.booleans()) if has_request is None else has_request:
        return requested(message, draw(st.integers(1, 2)), **fields)
    return anonymous(message, draw(st.integers(1, 12)) * 10 + message, **fields)
