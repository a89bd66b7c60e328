"""The service's values in the protocol's words."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from fluxbudgetd.model import Counts, Run, Triage, to_text
from fluxbudgetd.policy import burn
from fluxbudgetd.policy import triage as policy
from fluxbudgetd.policy.phases import (
    MACRO_STAGES,
    OTHER_STAGE,
    PhaseEstimate,
    allocations,
    estimate,
    macro_stage,
)
from fluxbudgetd.service import Service
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire import messages as wire

_LINE_GOAL = 200
# Sources that differ by less than this say the same: rows are parsed now and then, transcripts grow.
_OVER_COUNT = 1.05
#: A run's agents, models, sessions and attachments are listed up to this many each, so that they fit into a frame.
MOST_LINES = 200


class Heard(NamedTuple):
    """An answer, and who wants to know whether the peer has taken it: called once, with whether it has."""

    answer: wire.AnyAnswer
    heard: Callable[[bool], None]


def capped(tokens: int) -> int:
    """Return a sum as it can be sent."""
    return min(tokens, wire.MAX_TOKENS)


def spend(standing: Standing) -> wire.Spend:
    """Return where a run stands."""
    at = standing.balance
    return wire.Spend(
        budget=at.budget,
        spent=at.spent,
        measured=at.measured,
        provisional=at.provisional,
        reserved=at.reserved,
        remaining=at.remaining,
        pct=at.pct,
        state=at.state,
        stale=standing.stale_why is not None,
        stale_why=standing.stale_why,
    )


def run_info(run: Run) -> wire.RunInfo:
    """Return a run as it stands."""
    return wire.RunInfo(
        id=run.id,
        scope=run.scope,
        project_dir=run.project_dir,
        goal=run.goal,
        complexity=run.complexity,
        phases=run.phases,
        phase=run.phase,
        token_budget=run.token_budget,
        warn_pct=run.warn_pct,
        enforcement=run.enforcement,
        cost_basis=run.cost_basis,
        status=run.status,
        started_at=to_text(run.started_at),
        ended_at=None if run.ended_at is None else to_text(run.ended_at),
    )


def run_line(service: Service, state: RunAccount, standing: Standing) -> wire.RunLine:
    """Return a run's entry in a list."""
    info, rate = run_info(standing.run), service.totals.burn(state)
    return wire.RunLine(
        run=msgspec.structs.replace(info, goal=info.goal[:_LINE_GOAL]),
        spend=spend(standing),
        sessions=len({one.session for one in service.accounts.attachments_to(standing.run.id)}),
        pending=service.accounts.measured(state).pending,
        burn=capped(rate),
        minutes_left=burn.minutes_left(standing.balance.remaining, rate),
    )


def channels(service: Service) -> tuple[wire.ChannelInfo, ...]:
    """Return the channels, and the state files, and whether they work."""
    last = service.events.last
    found = [
        wire.ChannelInfo(
            name=one.channel.name,
            state=one.state,
            detail=one.detail,
            hint=one.hint,
            since=to_text(one.since),
            told=one.place,
            waiting=last - one.place,
        )
        for one in (() if service.deliveries is None else service.deliveries.couriers)
    ]
    files = service.state_files
    if files is not None:
        found.append(
            wire.ChannelInfo(
                name=files.name,
                state=files.state,
                detail=files.detail,
                hint=files.hint,
                since=to_text(files.since),
                told=last,
                waiting=0,
            )
        )
    return tuple(found)


def sources(service: Service) -> tuple[wire.SourceInfo, ...]:
    """Return the sources and their states."""
    return tuple(
        wire.SourceInfo(
            name=one.name,
            path=one.path,
            state=one.state,
            detail=one.detail,
            hint=one.hint,
            since=to_text(since),
            notes=one.notes,
            anomalies=anomalies,
        )
        for one, since, anomalies in service.totals.sources
    )


def phase_lines(service: Service, state: RunAccount) -> tuple[wire.PhaseLine, ...]:
    """Return the phases of a run's chain: what was measured in each, what counts for it, what it may cost."""
    run, timeline = state.run, service.accounts.timelines[state.run.id]
    sums = service.accounts.by_phase(state)
    records = {record.phase: record for record in state.completed}
    provisional = {record.phase for record in service.accounts.provisional(state)}
    known = {} if service.settings.calibration is None else service.settings.calibration.phases
    lines = []
    for index, phase in enumerate(run.phases):
        record = records.get(phase)
        counts = sums.get(phase, Counts())
        expected = (
            estimate(phase, run.cost_basis, service.settings.config.phases, known)
            if record is None
            else PhaseEstimate(record.estimate, record.source, record.sample_size)
        )
        state_of: wire.PhaseState = "completed" if record is not None else "ahead"
        if record is None and index <= run.phases.index(run.phase):
            state_of = "current" if phase == run.phase else "skipped"
        counting = expected.tokens if phase in provisional else 0
        since = timeline.since if state_of == "current" else None if record is None else record.since
        lines.append(
            wire.PhaseLine(
                **msgspec.structs.asdict(tally(phase, counts)),
                state=state_of,
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


def stage_lines(service: Service, state: RunAccount, by_phase: Iterable[wire.PhaseLine]) -> tuple[wire.StageLine, ...]:
    """Return the macro-stages of a run's phases: what was measured in each, and its part of the budget."""
    run = state.run
    allocated = {} if run.token_budget is None else allocations(service.settings.config.stages, run.token_budget)
    sums: dict[str, Counts] = {}
    measured = service.accounts.by_phase(state)
    provisional: dict[str, int] = {}
    for line in by_phase:
        stage = macro_stage(line.name)
        sums[stage] = sums.get(stage, Counts()) + measured.get(line.name, Counts())
        provisional[stage] = provisional.get(stage, 0) + line.provisional
    return tuple(
        wire.StageLine(
            **msgspec.structs.asdict(tally(stage, sums[stage])),
            spent=capped(sums[stage].tokens(run.cost_basis) + provisional[stage]),
            provisional=capped(provisional[stage]),
            allocated=allocated.get(stage),
        )
        for stage in (*MACRO_STAGES, OTHER_STAGE)
        if stage in sums
    )


def triage(made: Triage, note: str, stale_why: str | None) -> wire.TriageAnswer:
    """Return a triage as it is answered."""

    def part(stage: int | None, *, selected: bool) -> wire.TriagePart:
        chosen = [
            line for line in made.agents if stage in (None, line.stage) and (line.action == "Selected") == selected
        ]
        return wire.TriagePart(agents=len(chosen), est_tokens=capped(policy.tokens(chosen)))

    return wire.TriageAnswer(
        triage_id=made.id,
        verdict=made.verdict,
        run=made.run,
        session=made.session,
        input_type=made.input_type,
        model=made.model,
        slicing=made.slicing,
        cost_basis=made.cost_basis,
        enforcement=made.enforcement,
        budget=made.budget,
        type_budget=made.type_budget,
        sprint_remaining=made.sprint_remaining,
        sprint_constrained=made.sprint_constrained,
        selected=part(None, selected=True),
        deferred=part(None, selected=False),
        by_stage={
            f"stage_{stage}": wire.TriageStage(
                selected=part(stage, selected=True), deferred=part(stage, selected=False)
            )
            for stage in (1, 2)
        },
        agents=made.agents,
        summary=policy.summary(made.agents, made.budget, constrained=made.sprint_constrained),
        override=made.override,
        note=note,
        stale_why=stale_why,
    )


def session_sources(service: Service, sessions: Iterable[str]) -> tuple[wire.SessionSources, ...]:
    """Return what the sources say of sessions, those first of which they say different things."""
    found: list[wire.SessionSources] = []
    for name in sorted(sessions):
        state = service.accounts.session(name)
        transcripts = state.figures.get("transcripts", Counts())
        interstat = state.figures.get("interstat", Counts())
        ratio = round(interstat.total / transcripts.total, 2) if interstat.total and transcripts.total else None
        found.append(
            wire.SessionSources(
                session=name,
                counts="transcripts" if state.live else "interstat",
                transcripts_billing=capped(transcripts.billing),
                transcripts_total=capped(transcripts.total),
                interstat_billing=capped(interstat.billing),
                interstat_total=capped(interstat.total),
                ratio=ratio,
                words=_words(ratio),
            )
        )
    return tuple(sorted(found, key=lambda one: not one.words)[:MOST_LINES])


def _words(ratio: float | None) -> str:
    if ratio is None:
        return ""
    if ratio > _OVER_COUNT:
        return f"interstat counts {ratio:g} times what the transcripts say: it adds up a response's lines"
    return ""


def sums(parts: Iterable[tuple[str, Counts]]) -> dict[str, Counts]:
    """Return sums by name."""
    sums: defaultdict[str, Counts] = defaultdict(Counts)
    for name, counts in parts:
        sums[name] += counts
    return sums


def tallies(sums: dict[str, Counts]) -> tuple[wire.Tally, ...]:
    """Return sums, largest first, the smallest in one line."""
    ordered = sorted(sums, key=lambda name: (-sums[name].billing, name))
    shown, rest = ordered[:MOST_LINES], ordered[MOST_LINES:]
    lines = [tally(name, sums[name]) for name in shown]
    if rest:
        lines.append(tally(f"({len(rest)} more)", sum((sums[name] for name in rest), Counts())))
    return tuple(lines)


def tally(name: str, counts: Counts) -> wire.Tally:
    """Return a named sum."""
    return wire.Tally(
        name=name,
        records=counts.records,
        pending=counts.pending,
        input=capped(counts.input),
        output=capped(counts.output),
        cache_read=capped(counts.cache_read),
        cache_creation=capped(counts.cache_creation),
        billing=capped(counts.billing),
        total=capped(counts.total),
    )
