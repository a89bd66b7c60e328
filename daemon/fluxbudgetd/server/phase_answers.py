"""A run's phases and macro-stages as parts of answers."""

from collections.abc import Iterable

from fluxbudgetd.model import Counts, PhaseRecord, Run, to_text
from fluxbudgetd.policy.phases import MACRO_STAGES, OTHER_STAGE, PhaseEstimate, allocations, estimate, macro_stage
from fluxbudgetd.server.answers import capped, tally
from fluxbudgetd.service import Service
from fluxbudgetd.structs import converted
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire


def phase_lines(service: Service, account: RunAccount) -> tuple[wire.PhaseLine, ...]:
    """Return a run's phases: what was measured in each, what counts towards the budget, what was expected.

    Phases that the run has completed but that are no longer in its chain come last.
    """
    run = account.run
    sums = account.by_phase()
    entered = service.accounts.timelines[run.id].since
    records = {record.phase: record for record in account.completed}
    provisional = {record.phase: record.estimate for record in account.provisional()}
    lines = []
    for phase in dict.fromkeys((*run.phases, *records)):
        state = _state(run, phase, is_recorded=phase in records)
        # A run that was moved back will complete some phases again.
        record = records.get(phase) if state == "completed" else None
        counts, counting = sums.get(phase, Counts()), provisional.get(phase, 0)
        expected = _expected(service, run, phase, record)
        since = entered if state == "current" else None if record is None else record.since
        lines.append(
            converted(
                tally(phase, counts),
                wire.PhaseLine,
                state=state,
                since=None if since is None else to_text(since),
                until=None if record is None else to_text(record.until),
                spent=capped(counts.tokens(run.cost_basis) + counting),
                provisional=counting,
                estimate=expected.tokens,
                estimate_source=expected.source,
                sample_size=expected.sample_size,
                override=None if record is None else record.override,
            )
        )
    return tuple(lines)


def stage_lines(
    service: Service, account: RunAccount, by_phase: Iterable[wire.PhaseLine]
) -> tuple[wire.StageLine, ...]:
    """Return the macro-stages of a run's phases: what was measured in each, and its share of the budget."""
    run = account.run
    allocated = {} if run.token_budget is None else allocations(service.settings.config.stages, run.token_budget)
    measured = account.by_phase()
    sums: dict[str, Counts] = {}
    provisional: dict[str, int] = {}
    for line in by_phase:
        stage = macro_stage(line.name)
        sums[stage] = sums.get(stage, Counts()) + measured.get(line.name, Counts())
        provisional[stage] = provisional.get(stage, 0) + line.provisional
    return tuple(
        converted(
            tally(stage, sums[stage]),
            wire.StageLine,
            spent=capped(sums[stage].tokens(run.cost_basis) + provisional[stage]),
            provisional=capped(provisional[stage]),
            allocated=allocated.get(stage),
        )
        for stage in (*MACRO_STAGES, OTHER_STAGE)
        if stage in sums
    )


def _expected(service: Service, run: Run, phase: str, record: PhaseRecord | None) -> PhaseEstimate:
    if record is not None:
        return PhaseEstimate(record.estimate, record.source, record.sample_size)
    settings = service.settings
    return estimate(phase, run.cost_basis, settings.config.phases, *settings.phase_calibrations(run.project_dir))


def _state(run: Run, phase: str, *, is_recorded: bool) -> wire.PhaseState:
    if phase == run.phase:
        return "current"
    if phase in run.phases and run.phases.index(phase) > run.phases.index(run.phase):
        return "ahead"
    return "completed" if is_recorded else "skipped"
