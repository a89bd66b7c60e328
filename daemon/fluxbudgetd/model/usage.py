"""Usage: records of tokens, and their sums."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from fluxbudgetd.wire.messages import MAX_TOKENS, CostBasis


class Usage(msgspec.Struct, frozen=True, gc=False):
    """One record of used tokens, as a source gives it.

    `key` identifies the record within its session and source. `at` is None if the source's time cannot be read.
    `pending`: the record exists, but its tokens are not known yet.
    """

    key: int
    at: int | None
    agent: str
    model: str
    bead: str
    phase: str
    pending: bool
    input: int
    output: int
    cache_read: int
    cache_creation: int

    @property
    def counts(self) -> "Counts":
        """Return this record as a sum."""
        return Counts(1, self.pending, self.input, self.output, self.cache_read, self.cache_creation)


class Counts(msgspec.Struct, frozen=True, gc=False):
    """A sum of usage records."""

    records: int = 0
    pending: int = 0
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_creation: int = 0

    @property
    def billing(self) -> int:
        """Return input + output."""
        return self.input + self.output

    @property
    def total(self) -> int:
        """Return billing + cache_read + cache_creation."""
        return self.input + self.output + self.cache_read + self.cache_creation

    def tokens(self, basis: CostBasis) -> int:
        """Return the tokens that a budget of this basis counts."""
        return self.billing if basis == "billing" else self.total

    def capped(self) -> "Counts":
        """Return the sum with each count at most `MAX_TOKENS`."""
        return Counts(*(min(count, MAX_TOKENS) for count in msgspec.structs.astuple(self)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(
            self.records - other.records,
            self.pending - other.pending,
            self.input - other.input,
            self.output - other.output,
            self.cache_read - other.cache_read,
            self.cache_creation - other.cache_creation,
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.records + other.records,
            self.pending + other.pending,
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_creation + other.cache_creation,
        )


class Cell(NamedTuple):
    """The key by which a session's usage is summed. `run` is None for usage that belongs to no run.

    `earlier_for`: the run that the session joined first, if the usage is older than what that run counts.
    """

    run: str | None
    phase: str
    agent: str
    model: str
    earlier_for: str | None = None


class RecentUsage(msgspec.Struct, frozen=True):
    """The sum of a session's recent rows that name one bead."""

    session: str
    bead: str
    counts: Counts


class AgentSample(NamedTuple):
    """An agent's rows whose total is known: their number, and the sums of their billing and total tokens."""

    agent: str
    rows: int
    billing: int
    total: int


class AgentRow(NamedTuple):
    """One measured row of an agent. `key` identifies it within the source."""

    key: int
    session: str
    at: int | None
    agent: str
    billing: int


class MeasuredRow(NamedTuple):
    """One row of a sub-agent whose total is known. `agent` is its plain name.

    `at` is the time of its end, and `milliseconds` how long it took; None if that is not known.
    """

    key: int
    session: str
    at: int | None
    agent: str
    model: str
    input: int
    output: int
    total: int
    milliseconds: int | None


class RowMark(NamedTuple):
    """How far a source's rows have been read: up to the row `last`.

    `pending` were not measured yet. `recent`: fingerprints of the newest measured ones, by key, because these change.
    """

    last: int = 0
    pending: frozenset[int] = frozenset()
    recent: Mapping[int, int] = {}


class NewRows(msgspec.Struct):
    """Rows that were measured, or have changed, after a mark, and the new mark."""

    rows: list[MeasuredRow]
    mark: RowMark


class Instance(NamedTuple):
    """A sub-agent that a source knows: it has a transcript of its own, or a row in interstat.

    `agent_id` and `call`, the id of the tool call that launched it, are None if the source does not know them. `at` is
    the time of its first usage and `last` that of its latest, None if there is none or the source has no times.
    `counts` is what its transcript holds; a row has none.
    """

    session: str
    agent: str
    agent_id: str | None
    at: int | None
    last: int | None = None
    call: str | None = None
    counts: Counts = Counts()
