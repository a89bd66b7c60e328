"""Runs, their phases, their sessions and their budgets."""

from typing import Literal, NamedTuple

import msgspec

from fluxbudgetd.model.usage import Counts
from fluxbudgetd.wire.messages import BudgetState, CostBasis, Enforcement, EstimateSource, RunStatus

#: Where an attachment comes from: a person or a hook, a row's bead, or a claim in intercore.
Origin = Literal["asked", "bead", "claim"]
#: The settings of an adopted run that can be set by hand, and then win.
Setting = Literal["token_budget", "warn_pct", "enforcement", "status"]

_SECOND = 1_000_000
_MILLISECOND = 1_000


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """Where an adopted run comes from, and what it follows.

    `database` is the path of intercore's database and `run_id` the run's id there; both are empty if the run comes only
    from a bead. `last_move` is the number of the newest phase move that was applied. `kept` has the settings that a
    person has set: they are no longer followed. `withheld` has the looser values of a hard run that await a person's
    confirmation. `label_budget` is the bead's `token_budget` when the run was adopted (0: unlimited, None: no label),
    if `is_label_read`. `label_wins`: the label has changed since, so it overrides intercore's budget.
    """

    database: str = ""
    run_id: str = ""
    last_move: int = 0
    kept: tuple[Setting, ...] = ()
    withheld: dict[Setting, int | str | None] = {}
    label_budget: int | None = None
    is_label_read: bool = False
    label_wins: bool = False


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work with a token budget.

    An allowance lets a run with hard enforcement go on although its budget is exhausted: until it has spent
    `allowed_to` tokens, or until the time `allowed_until`, in microseconds.

    `adopted`: the other program that has the run, too; None if there is none.
    """

    id: str
    scope: str | None
    project_dir: str
    goal: str
    complexity: int
    phases: tuple[str, ...]
    phase: str
    token_budget: int | None
    warn_pct: int
    enforcement: Enforcement
    cost_basis: CostBasis
    status: RunStatus
    started_at: int
    ended_at: int | None
    allowed_to: int | None = None
    allowed_until: int | None = None
    adopted: Adoption | None = None


class PhaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A completed phase of a run. It lasted from `since` until just before `until`.

    `measured` is what had been measured when the run left the phase. While it is zero, `estimate` (in tokens of the
    run's cost basis) counts provisionally. `override`: why the run continued with an exceeded budget.
    """

    phase: str
    since: int
    until: int
    measured: Counts
    estimate: int
    source: EstimateSource
    sample_size: int
    override: str | None = None


class Timeline(msgspec.Struct, frozen=True):
    """A run and its completed phases, oldest first."""

    run: Run
    completed: tuple[PhaseRecord, ...] = ()

    @property
    def since(self) -> int:
        """Return when the run entered its current phase."""
        return self.completed[-1].until if self.completed else self.run.started_at

    def phase_at(self, at: int | None) -> str:
        """Return the run's phase at a time: the first phase before the start, the current phase for None."""
        if at is not None:
            for record in self.completed:
                if at < record.until:
                    return record.phase
        return self.run.phase


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A period in which a session belongs to a run: from `since` until just before `until` (None: still attached).

    Its usage counts from `counts_from` on, which is `since` or earlier; 0 means the whole session.
    """

    session: str
    run: str
    since: int
    until: int | None
    counts_from: int
    origin: Origin

    def covers(self, at: int | None) -> bool:
        """Return True if a record of this time belongs to the period. A record without a time counts as the newest."""
        if at is None:
            return self.until is None
        return not self.follows(at) and (self.until is None or at < self.until)

    def follows(self, at: int) -> bool:
        """Return True if the period counts only from after this time.

        A time on a whole second stands for that second, and one on a whole millisecond, as transcripts have it, for
        that millisecond.
        """
        if self.counts_from == 0 or at >= self.counts_from:
            return False
        unit = _MILLISECOND if at % _SECOND else _SECOND
        return at % unit != 0 or at + unit <= self.counts_from


class Stint(NamedTuple):
    """A period in which a session worked for a run. `measured`: the run has usage from that session.

    `until` is None while the period lasts.
    """

    since: int
    until: int | None
    measured: bool


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """A run's budget and spend, in tokens of the run's cost basis.

    `remaining` includes what an allowance adds to the budget; `pct` and `state` are those of the budget.
    """

    budget: int | None
    measured: int
    provisional: int
    reserved: int
    spent: int
    remaining: int | None
    pct: float | None
    state: BudgetState


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """An admitted sub-agent's estimate, in tokens of the run's cost basis.

    `agent` is its plain name. `agent_id` is None until it starts. `call` is the id of the tool call that launches it,
    `parent` the id of the sub-agent that makes this call; None if the session's main loop does, or if it is not known.
    `resumes` is the id of the finished sub-agent that the call resumes, None if it starts a new one.
    `ended_at` is None until its end is known. `seen_at` is when an event last showed that it is under way. `base` is
    what it had used before this launch: a finished sub-agent may be resumed.
    """

    id: int
    run: str
    session: str
    agent: str
    tokens: int
    at: int
    agent_id: str | None = None
    ended_at: int | None = None
    call: str | None = None
    parent: str | None = None
    resumes: str | None = None
    base: int = 0
    seen_at: int = 0
