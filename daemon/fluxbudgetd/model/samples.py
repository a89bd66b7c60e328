"""Samples: what sub-agents that have ended have cost."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages import CostBasis, TriageRound

SampleSource = Literal["transcripts", "interstat"]


class Sample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one sub-agent of a session has used, from its beginning to its end.

    `instance` identifies it within its session: `agent-ID` of a transcript, `row-KEY` of a row in interstat. `agent` is
    its plain name. `model` is empty if the source does not know it. `sliced`: a review had given it a slice of the
    document. `round` is `reaction` if a review launched it to react to the findings of others. `input` and `output` are
    tokens; `total` includes those of the cache. `started_at` and `ended_at` are the times of its first and last usage,
    None if the source has no times.
    """

    session: str
    instance: str
    agent: str
    model: str
    sliced: bool
    input: int
    output: int
    total: int
    started_at: int | None
    ended_at: int | None
    source: SampleSource
    round: TriageRound = "review"

    @property
    def billing(self) -> int:
        """Return input + output."""
        return self.input + self.output

    @property
    def duration(self) -> int | None:
        """Return how long it took, in microseconds; None if that is not known."""
        return None if self.started_at is None or self.ended_at is None else self.ended_at - self.started_at

    def tokens(self, basis: CostBasis) -> int:
        """Return the tokens that a budget of this basis counts."""
        return self.billing if basis == "billing" else self.total
