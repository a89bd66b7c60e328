"""A run's budget: what is left, whether the run may go on, and its next phase."""

from fluxbudgetd.wire.messages.base import Answer, Naming
from fluxbudgetd.wire.messages.spend import PhaseLine, Spend


class Remaining(Naming, frozen=True, tag="remaining"):
    """Return what is left of a run's budget."""


class Check(Naming, frozen=True, kw_only=True, tag="check"):
    """Check whether a run may go on. A refusal, and an override that was needed, are recorded as events."""

    override: str | None = None
    """The reason to go on although the budget is exceeded. Only soft enforcement accepts it."""


class Advance(Naming, frozen=True, kw_only=True, tag="advance"):
    """Check the budget, then move the run to another phase. Of several concurrent calls, one wins.

    A run that was adopted from intercore is only checked, not moved: see `ic_run` in the answer.
    """

    from_phase: str
    """The phase that the client believes the run is in."""
    to_phase: str | None = None
    """A later phase; the next one if omitted."""
    override: str | None = None
    """As for `check`."""


class RemainingAnswer(Answer, frozen=True, kw_only=True, tag="remaining"):
    """The run and its spend."""

    run: str
    phase: str
    spend: Spend
    tied: tuple[str, ...] = ()
    """All active runs of the directory, if it has several and none was named. The answer is about the hard one with
    the least left."""


class CheckAnswer(Answer, frozen=True, kw_only=True, tag="check"):
    """Whether the run may go on."""

    run: str
    phase: str
    allowed: bool
    refusal: str | None
    """Why not: `budget_exceeded|PHASE|SPENT/BUDGET billing tokens`."""
    overridden: str | None
    """The override's reason, if the budget is exceeded and the override was accepted."""
    note: str
    """Why an override was not accepted; otherwise empty."""
    tied: tuple[str, ...] = ()
    """As for `remaining`."""
    spend: Spend


class AdvanceAnswer(Answer, frozen=True, kw_only=True, tag="advance"):
    """Whether the run has moved to another phase."""

    run: str
    advanced: bool
    line: str
    """`advanced|P|Q`, `budget_exceeded|P|…`, `stale_phase|P|…`, or `not_advanced|P|…` if `ic_run` is set."""
    phase: str
    """The phase that the run is in now."""
    completed: PhaseLine | None
    """The phase that the run has left, as recorded."""
    overridden: str | None
    note: str
    spend: Spend
    ic_run: str | None = None
    """The run's id in intercore's database, if the run may move on and only `ic` can move it. Then nothing has changed
    yet, and the client runs `ic run advance`. Otherwise null."""
    ic_directory: str | None = None
    """The directory to run `ic` in: the one that contains `.clavain`."""
