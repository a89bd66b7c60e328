"""Runs and their sessions: started, listed, shown, changed, ended."""

from collections.abc import Iterable

from fluxbudgetd import answers
from fluxbudgetd.engine import Engine
from fluxbudgetd.engine.book import RunState
from fluxbudgetd.handlers.common import Context, deadline_of, find
from fluxbudgetd.model import to_text
from fluxbudgetd.wire import messages as wire

# A page fits into a frame whatever the runs are called: a line is at most about 12 kB.
_PAGE_RUNS = 64


async def status(context: Context, request: wire.Status) -> wire.StatusAnswer:
    """Answer with the active runs, or the one that was named."""
    engine, deadline = context.engine, deadline_of(request)
    if request.run or request.scope or request.session:
        states = [await engine.find(request.run, request.scope, request.session, wire.Hints(), deadline)]
    else:
        states = engine.book.active()
    lines, following = await _lines(engine, states, request.after, deadline)
    if request.after is None and not (request.run or request.scope or request.session):
        await engine.look_at_sources(deadline)
    sessions, loose = await engine.unattributed(deadline)
    return wire.StatusAnswer(
        runs=lines,
        next=following,
        sources=answers.sources(engine),
        unattributed=wire.Unattributed(
            sessions=sessions, billing=answers.capped(loose.billing), total=answers.capped(loose.total)
        ),
    )


async def run_start(context: Context, request: wire.RunStart) -> wire.RunAnswer:
    """Start a run, or find the one that was started so before."""
    run, changed = await context.engine.changes.start(request, deadline_of(request))
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_list(context: Context, request: wire.RunList) -> wire.RunListAnswer:
    """Answer with the active runs, or all."""
    book = context.engine.book
    states = list(book.runs.values()) if request.all else book.active()
    lines, following = await _lines(context.engine, states, request.after, deadline_of(request))
    return wire.RunListAnswer(runs=lines, next=following)


async def run_show(context: Context, request: wire.RunShow) -> wire.RunShowAnswer:
    """Answer with everything that is known of a run."""
    engine, deadline = context.engine, deadline_of(request)
    state = await find(context, request, deadline)
    await engine.settings.refresh(deadline)
    standing = await engine.standing(state, deadline)
    cells = list(engine.book.cells(state))
    by_phase = answers.phase_lines(engine, state)
    return wire.RunShowAnswer(
        run=answers.run_info(standing.run),
        spend=answers.spend(standing),
        totals=answers.tally("all", engine.book.measured(state)),
        by_phase=by_phase,
        by_stage=answers.stage_lines(engine, state, by_phase),
        by_agent=answers.tallies(answers.sums((cell.agent, counts) for _, cell, counts in cells)),
        by_model=answers.tallies(answers.sums((cell.model, counts) for _, cell, counts in cells)),
        by_session=answers.tallies(answers.sums((session, counts) for session, _, counts in cells)),
        sources=answers.session_sources(engine, state.sessions),
        attachments=tuple(
            wire.AttachmentInfo(
                session=one.session,
                since=None if one.first else to_text(one.since),
                until=None if one.until is None else to_text(one.until),
                origin=one.origin,
            )
            for one in engine.book.attachments_to(state.run.id)[-answers.MOST_LINES :]
        ),
    )


async def run_set(context: Context, request: wire.RunSet) -> wire.RunAnswer:
    """Change a run."""
    deadline = deadline_of(request)
    run, changed = await context.engine.changes.change(await find(context, request, deadline), request, deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_attach(context: Context, request: wire.RunAttach) -> wire.RunAnswer:
    """Attach a session to a run."""
    deadline = deadline_of(request)
    state = await context.engine.find(request.run, request.scope, None, request.hints, deadline)
    changed = await context.engine.changes.attach(request.attach, state, deadline, request.transcript)
    return wire.RunAnswer(run=answers.run_info(state.run), changed=changed)


async def run_detach(context: Context, request: wire.RunDetach) -> wire.RunAnswer:
    """Detach a session from its run, or from the run that was named."""
    deadline = deadline_of(request)
    state = None
    if request.run or request.scope:
        state = await context.engine.find(request.run, request.scope, None, wire.Hints(), deadline)
    run = await context.engine.changes.detach(request.detach, state, deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=True)


async def run_finish(context: Context, request: wire.RunFinish) -> wire.RunAnswer:
    """End a run as done."""
    deadline = deadline_of(request)
    run, changed = await context.engine.changes.end(await find(context, request, deadline), "done", deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_cancel(context: Context, request: wire.RunCancel) -> wire.RunAnswer:
    """End a run as cancelled."""
    deadline = deadline_of(request)
    run, changed = await context.engine.changes.end(await find(context, request, deadline), "cancelled", deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def _lines(
    engine: Engine, states: Iterable[RunState], after: str | None, deadline: float
) -> tuple[tuple[wire.RunLine, ...], str | None]:
    """Return a page of runs, newest first, and where the next one begins."""
    newest_first = sorted(states, key=_newest_first)
    if after is not None:
        last = engine.book.runs.get(after)
        newest_first = [] if last is None else [one for one in newest_first if _newest_first(one) > _newest_first(last)]
    page = newest_first[:_PAGE_RUNS]
    standings = await engine.standings(page, deadline)
    lines = tuple(answers.run_line(engine, state, standing) for state, standing in zip(page, standings, strict=True))
    return lines, page[-1].run.id if len(newest_first) > len(page) else None


def _newest_first(state: RunState) -> tuple[int, str]:
    return -state.run.started_at, state.run.id
