"""The engine's values in the protocol's words."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from fluxbudgetd.engine import Engine, Standing
from fluxbudgetd.engine.book import RunState
from fluxbudgetd.model import Counts, Run, to_text
from fluxbudgetd.wire import messages as wire

_LINE_GOAL = 200
#: A run's agents, models, sessions and attachments are listed up to this many each, so that they fit into a frame.
MOST_LINES = 200


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


def run_line(engine: Engine, state: RunState, standing: Standing) -> wire.RunLine:
    """Return a run's entry in a list."""
    info = run_info(standing.run)
    return wire.RunLine(
        run=msgspec.structs.replace(info, goal=info.goal[:_LINE_GOAL]),
        spend=spend(standing),
        sessions=len({one.session for one in engine.book.attachments_to(standing.run.id)}),
        pending=engine.book.measured(state).pending,
    )


def sources(engine: Engine) -> tuple[wire.SourceInfo, ...]:
    """Return the sources and their states."""
    one = engine.source_status
    return (
        wire.SourceInfo(
            name=one.name,
            path=one.path,
            state=one.state,
            detail=one.detail,
            hint=one.hint,
            since=to_text(engine.source_since),
            notes=one.notes,
            anomalies=engine.anomalies,
        ),
    )


def sums(parts: Iterable[tuple[str, Counts]]) -> dict[str, Counts]:
    """Return sums by name."""
    sums: defaultdict[str, Counts] = defaultdict(Counts)
    for name, counts in parts:
        sums[name] += counts
    return sums


def tallies(sums: dict[str, Counts], order: tuple[str, ...] = ()) -> tuple[wire.Tally, ...]:
    """Return sums in a given order, what it does not name behind it, largest first, the smallest in one line."""
    known = [name for name in order if name in sums]
    others = sorted(sums.keys() - set(order), key=lambda name: (-sums[name].billing, name))
    shown, rest = others[:MOST_LINES], others[MOST_LINES:]
    lines = [tally(name, sums[name]) for name in (*known, *shown)]
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
