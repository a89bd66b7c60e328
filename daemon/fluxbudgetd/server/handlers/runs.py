"""Runs and their sessions: start, list, show, change, end."""

from collections import defaultdict
from collections.abc import Iterable

from fluxbudgetd.model import Counts
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of, find
from fluxbudgetd.server.phase_answers import phase_lines, stage_lines
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.wire import messages as wire

# A line takes at most about 12 kB, so a page always fits into a frame.
_PAGE_RUNS = 64


async def status(context: Context, request: wire.Status) -> wire.StatusAnswer:
    """Return the active runs, or the named one, with the sources and the unattributed usage."""
    service, deadline = context.service, deadline_of(request)
    is_named = bool(request.run or request.scope or request.session)
    await service.adoption.refresh_all(deadline, request.cwd)
    if is_named:
        accounts = [await service.totals.find(request.run, request.scope, request.session, wire.Hints(), deadline)]
    else:
        accounts = service.accounts.active()
    lines, following = await _page(service, accounts, request.after, deadline)
    if request.after is None and not is_named:
        await service.totals.refresh_sources(deadline)
    sessions, loose = await service.totals.unattributed(deadline)
    return wire.StatusAnswer(
        runs=lines,
        next=following,
        sources=answers.sources(service),
        databases=answers.databases(service),
        unattributed=wire.Unattributed(
            sessions=sessions, billing=answers.capped(loose.billing), total=answers.capped(loose.total)
        ),
    )


async def run_start(context: Context, request: wire.RunStart, pid: int) -> wire.RunAnswer:
    """Start a run, or return the one that the same arguments started before."""
    deadline = deadline_of(request)
    # intercore may have started it.
    await context.service.adoption.refresh(request.project_dir, None, deadline)
    caller = await context.service.callers.look_up(pid)
    return answers.changed_run(await context.service.lifecycle.start(request, deadline, caller))


async def run_list(context: Context, request: wire.RunList) -> wire.RunListAnswer:
    """Return the active runs, or all."""
    await context.service.adoption.refresh_all(deadline_of(request), request.cwd)
    known = context.service.accounts
    accounts = list(known.runs.values()) if request.all else known.active()
    lines, following = await _page(context.service, accounts, request.after, deadline_of(request))
    return wire.RunListAnswer(runs=lines, next=following)


async def run_show(context: Context, request: wire.RunShow) -> wire.RunShowAnswer:
    """Return everything about one run."""
    service, deadline = context.service, deadline_of(request)
    account = await find(context, request, deadline)
    await service.settings.refresh(deadline)
    await service.settings.refresh_phase_costs(account.run.project_dir, deadline)
    standing = await service.totals.standing(account, deadline)
    cells = list(account.cells())
    by_phase = phase_lines(service, account)
    reasons = service.totals.lower_bounds.of_run(account)
    return wire.RunShowAnswer(
        run=answers.run_info(standing.run),
        spend=answers.spend(standing),
        totals=answers.tally("all", account.measured()),
        by_phase=by_phase,
        by_stage=stage_lines(service, account, by_phase),
        by_agent=answers.tallies(_sums((cell.agent, counts) for _, cell, counts in cells)),
        by_model=answers.tallies(_sums((cell.model, counts) for _, cell, counts in cells)),
        by_session=answers.tallies(_sums((session, counts) for session, _, counts in cells)),
        sources=answers.session_sources(service, account.sessions, account.run.id),
        attachments=tuple(answers.attachment(one) for one in account.attachments()[-answers.MOST_LINES :]),
        earlier=answers.earlier(account.earlier()),
        lower_bound=bool(reasons),
        lower_bound_why=answers.listed(reasons),
    )


async def run_set(context: Context, request: wire.RunSet, pid: int) -> wire.RunAnswer:
    """Change a run's settings."""
    deadline = deadline_of(request)
    account = await find(context, request, deadline)
    caller = await context.service.callers.look_up(pid)
    return answers.changed_run(await context.service.lifecycle.change(account, request, deadline, caller))


async def run_allow(context: Context, request: wire.RunAllow, pid: int) -> wire.RunAnswer:
    """Let a run with an exhausted hard budget go on once."""
    deadline = deadline_of(request)
    account = await find(context, request, deadline)
    caller = await context.service.callers.look_up(pid)
    change = await context.service.allowances.allow(account, request.tokens, request.minutes, deadline, caller)
    return answers.changed_run(change)


async def run_attach(context: Context, request: wire.RunAttach, pid: int) -> wire.RunAnswer:
    """Attach a session to a run."""
    deadline = deadline_of(request)
    await context.service.adoption.refresh(request.hints.cwd, None, deadline)
    account = await context.service.totals.find(request.run, request.scope, None, request.hints, deadline)
    caller = await context.service.callers.look_up(pid)
    change = await context.service.attachments.attach(
        request.attach, account, deadline, request.transcript, whole=request.whole, caller=caller
    )
    return answers.changed_run(change)


async def run_detach(context: Context, request: wire.RunDetach, pid: int) -> wire.RunAnswer:
    """Detach a session from the named run, or from the one it belongs to."""
    deadline = deadline_of(request)
    account = None
    if request.run or request.scope:
        account = await context.service.totals.find(request.run, request.scope, None, wire.Hints(), deadline)
    caller = await context.service.callers.look_up(pid)
    run = await context.service.attachments.detach(request.detach, account, deadline, caller)
    return wire.RunAnswer(run=answers.run_info(run), changed=True)


async def run_finish(context: Context, request: wire.RunFinish, pid: int) -> wire.RunAnswer:
    """End a run as done."""
    deadline = deadline_of(request)
    account = await find(context, request, deadline)
    caller = await context.service.callers.look_up(pid)
    return answers.changed_run(await context.service.lifecycle.end(account, "done", deadline, caller))


async def run_cancel(context: Context, request: wire.RunCancel, pid: int) -> wire.RunAnswer:
    """End a run as cancelled."""
    deadline = deadline_of(request)
    account = await find(context, request, deadline)
    caller = await context.service.callers.look_up(pid)
    return answers.changed_run(await context.service.lifecycle.end(account, "cancelled", deadline, caller))


async def _page(
    service: Service, accounts: Iterable[RunAccount], after: str | None, deadline: float
) -> tuple[tuple[wire.RunLine, ...], str | None]:
    """Return the runs that follow `after`, newest first, and where the next page begins (None: nowhere)."""
    ordered = sorted(accounts, key=_newest_first)
    if after is not None:
        last = service.accounts.runs.get(after)
        ordered = [] if last is None else [one for one in ordered if _newest_first(one) > _newest_first(last)]
    page = ordered[:_PAGE_RUNS]
    standings = await service.totals.standings(page, deadline)
    lines = tuple(answers.run_line(service, one, standing) for one, standing in zip(page, standings, strict=True))
    return lines, page[-1].run.id if len(ordered) > len(page) else None


def _newest_first(account: RunAccount) -> tuple[int, str]:
    return -account.run.started_at, account.run.id


def _sums(parts: Iterable[tuple[str, Counts]]) -> dict[str, Counts]:
    """Return the sum of the counts of each name."""
    sums: defaultdict[str, Counts] = defaultdict(Counts)
    for name, counts in parts:
        sums[name] += counts
    return sums
