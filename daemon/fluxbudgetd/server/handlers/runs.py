"""Runs and their sessions: started, listed, shown, changed, ended."""

from collections.abc import Iterable

from fluxbudgetd.model import to_text
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of, find
from fluxbudgetd.service import Service
from fluxbudgetd.totals.accounts import RunAccount
from fluxbudgetd.wire import messages as wire

# A page fits into a frame whatever the runs are called: a line is at most about 12 kB.
_PAGE_RUNS = 64


async def status(context: Context, request: wire.Status) -> wire.StatusAnswer:
    """Answer with the active runs, or the one that was named."""
    service, deadline = context.service, deadline_of(request)
    if request.run or request.scope or request.session:
        states = [await service.totals.find(request.run, request.scope, request.session, wire.Hints(), deadline)]
    else:
        states = service.accounts.active()
    lines, following = await _lines(service, states, request.after, deadline)
    if request.after is None and not (request.run or request.scope or request.session):
        await service.totals.refresh_sources(deadline)
    sessions, loose = await service.totals.unattributed(deadline)
    return wire.StatusAnswer(
        runs=lines,
        next=following,
        sources=answers.sources(service),
        unattributed=wire.Unattributed(
            sessions=sessions, billing=answers.capped(loose.billing), total=answers.capped(loose.total)
        ),
    )


async def run_start(context: Context, request: wire.RunStart) -> wire.RunAnswer:
    """Start a run, or find the one that was started so before."""
    run, changed = await context.service.lifecycle.start(request, deadline_of(request))
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_list(context: Context, request: wire.RunList) -> wire.RunListAnswer:
    """Answer with the active runs, or all."""
    accounts = context.service.accounts
    states = list(accounts.runs.values()) if request.all else accounts.active()
    lines, following = await _lines(context.service, states, request.after, deadline_of(request))
    return wire.RunListAnswer(runs=lines, next=following)


async def run_show(context: Context, request: wire.RunShow) -> wire.RunShowAnswer:
    """Answer with everything that is known of a run."""
    service, deadline = context.service, deadline_of(request)
    state = await find(context, request, deadline)
    await service.settings.refresh(deadline)
    standing = await service.totals.standing(state, deadline)
    cells = list(service.accounts.cells(state))
    by_phase = answers.phase_lines(service, state)
    return wire.RunShowAnswer(
        run=answers.run_info(standing.run),
        spend=answers.spend(standing),
        totals=answers.tally("all", service.accounts.measured(state)),
        by_phase=by_phase,
        by_stage=answers.stage_lines(service, state, by_phase),
        by_agent=answers.tallies(answers.sums((cell.agent, counts) for _, cell, counts in cells)),
        by_model=answers.tallies(answers.sums((cell.model, counts) for _, cell, counts in cells)),
        by_session=answers.tallies(answers.sums((session, counts) for session, _, counts in cells)),
        sources=answers.session_sources(service, state.sessions),
        attachments=tuple(
            wire.AttachmentInfo(
                session=one.session,
                since=None if one.first else to_text(one.since),
                until=None if one.until is None else to_text(one.until),
                origin=one.origin,
            )
            for one in service.accounts.attachments_to(state.run.id)[-answers.MOST_LINES :]
        ),
    )


async def run_set(context: Context, request: wire.RunSet) -> wire.RunAnswer:
    """Change a run."""
    deadline = deadline_of(request)
    run, changed = await context.service.lifecycle.change(await find(context, request, deadline), request, deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_attach(context: Context, request: wire.RunAttach) -> wire.RunAnswer:
    """Attach a session to a run."""
    deadline = deadline_of(request)
    state = await context.service.totals.find(request.run, request.scope, None, request.hints, deadline)
    changed = await context.service.lifecycle.attach(request.attach, state, deadline, request.transcript)
    return wire.RunAnswer(run=answers.run_info(state.run), changed=changed)


async def run_detach(context: Context, request: wire.RunDetach) -> wire.RunAnswer:
    """Detach a session from its run, or from the run that was named."""
    deadline = deadline_of(request)
    state = None
    if request.run or request.scope:
        state = await context.service.totals.find(request.run, request.scope, None, wire.Hints(), deadline)
    run = await context.service.lifecycle.detach(request.detach, state, deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=True)


async def run_finish(context: Context, request: wire.RunFinish) -> wire.RunAnswer:
    """End a run as done."""
    deadline = deadline_of(request)
    run, changed = await context.service.lifecycle.end(await find(context, request, deadline), "done", deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_cancel(context: Context, request: wire.RunCancel) -> wire.RunAnswer:
    """End a run as cancelled."""
    deadline = deadline_of(request)
    run, changed = await context.service.lifecycle.end(await find(context, request, deadline), "cancelled", deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def _lines(
    service: Service, states: Iterable[RunAccount], after: str | None, deadline: float
) -> tuple[tuple[wire.RunLine, ...], str | None]:
    """Return a page of runs, newest first, and where the next one begins."""
    newest_first = sorted(states, key=_newest_first)
    if after is not None:
        last = service.accounts.runs.get(after)
        newest_first = [] if last is None else [one for one in newest_first if _newest_first(one) > _newest_first(last)]
    page = newest_first[:_PAGE_RUNS]
    standings = await service.totals.standings(page, deadline)
    lines = tuple(answers.run_line(service, state, standing) for state, standing in zip(page, standings, strict=True))
    return lines, page[-1].run.id if len(newest_first) > len(page) else None


def _newest_first(state: RunAccount) -> tuple[int, str]:
    return -state.run.started_at, state.run.id
