"""Triages: which review agents were launched."""

import msgspec

from fluxbudgetd.wire.messages import CostBasis, Enforcement, TriageLine, TriageRound, TriageVerdict


class Triage(msgspec.Struct, frozen=True, kw_only=True):
    """Which review agents were launched, and which were not. Numbers are tokens of `cost_basis`.

    `budget` is the one that applied: the input type's (`type_budget`), or the rest of the run's if that was tighter
    (`sprint_constrained`). These two may be in tokens of other cost bases: the budget file's and the run's.
    `last_key` is the largest key among the session's records at that time, None if its transcripts count.
    """

    id: str
    at: int
    run: str | None
    session: str | None
    last_key: int | None
    input_type: str
    model: str
    slicing: bool
    cost_basis: CostBasis
    enforcement: Enforcement
    min_agents: int
    type_budget: int
    sprint_remaining: int | None
    sprint_constrained: bool
    budget: int
    verdict: TriageVerdict
    override: str | None
    agents: tuple[TriageLine, ...]
    round: TriageRound = "review"
