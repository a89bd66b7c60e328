"""What intercore's database says: runs, phases, sessions, and the usage of other programs.

intercore's times are whole seconds; here they are microseconds, like all times.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from fluxbudgetd.model.sources import SourceStatus
from fluxbudgetd.model.usage import Counts, Usage

IcStatus = Literal["active", "completed", "cancelled", "failed"]


class IcRun(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `runs`. `project_dir` is empty for the parent of a portfolio.

    `phases` is None if the row has no valid list. `is_hard`: intercore enforces the budget (`budget_enforce`).
    `faults` say which values were replaced because they are not allowed.
    """

    id: str
    project_dir: str
    goal: str
    status: IcStatus
    phase: str
    phases: tuple[str, ...] | None
    complexity: int
    scope: str | None
    token_budget: int | None
    warn_pct: int
    is_hard: bool
    created_at: int
    updated_at: int
    ended_at: int | None
    faults: tuple[str, ...] = ()


class PhaseMove(NamedTuple):
    """A row of `phase_events` that moved a run to another phase. `number` is the row's id; `kind` its event type."""

    number: int
    at: int
    from_phase: str
    to_phase: str
    kind: str


class SessionClaim(NamedTuple):
    """The latest row that says which run a session works for: a claim (`run_agents`), otherwise an attribution.

    An attribution may name a bead instead of a run.
    """

    session: str
    at: int
    run: str | None
    bead: str | None
    is_claim: bool


class IntercoreReading(msgspec.Struct, frozen=True, kw_only=True):
    """One read of a database. Everything but the status is empty unless `status.is_readable`.

    `schema` is its `user_version`. `runs` has the active and the followed runs, by id; a followed run that is missing
    was removed. `moves` has each run's phase moves after the last known one, oldest first. `last_moves` has the number
    of each run's newest move, which is lower than the last known one if a backup was restored. `dispatches` has each
    run's dispatches of other programs: their `key` is a digest of the row's id, and their `phase` is empty. `own` has
    our row of each run, or None. Runs without moves or dispatches are missing from those mappings.
    """

    status: SourceStatus
    schema: int | None = None
    runs: Mapping[str, IcRun] = {}
    moves: Mapping[str, tuple[PhaseMove, ...]] = {}
    last_moves: Mapping[str, int] = {}
    claims: tuple[SessionClaim, ...] = ()
    dispatches: Mapping[str, tuple[Usage, ...]] = {}
    own: Mapping[str, Counts | None] = {}
