"""Requests about one run's budget: remaining, check, advance."""

import os
from collections.abc import Awaitable

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.errors import NoRunError
from fluxbudgetd.policy import advance as policy
from fluxbudgetd.policy.advance import Verdict
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, choose_standing, deadline_of, find
from fluxbudgetd.server.phase_answers import phase_lines
from fluxbudgetd.totals import Standing
from fluxbudgetd.wire import messages as wire


def remaining(context: Context, request: wire.Remaining) -> wire.RemainingAnswer | Awaitable[wire.RemainingAnswer]:
    """Return what is left of a run's budget."""
    standing = _standing_now(context, request)
    return _remaining_later(context, request) if standing is None else _remaining(standing)


def check(context: Context, request: wire.Check, pid: int) -> wire.CheckAnswer | Awaitable[wire.CheckAnswer]:
    """Check whether the run may go on. A refusal, and an override that was needed, are recorded as events."""
    standing = _standing_now(context, request)
    if standing is None:
        return _check_later(context, request, pid)
    verdict = policy.checked(standing.run, standing.balance, request.override, now_micros())
    if verdict.refusal is None and verdict.override is None:
        return _checked(standing, verdict)
    return _recorded(context, request, pid, standing, verdict)


async def advance(context: Context, request: wire.Advance, pid: int, *, can_run_ic: bool = True) -> wire.AdvanceAnswer:
    """Check the budget, and move the run to its next phase, unless only `ic` can.

    A client that cannot run `ic` (`can_run_ic` is false) asks again through the Python client, so an override is not
    recorded yet.
    """
    service, deadline = context.service, deadline_of(request)
    account = await find(context, request, deadline)
    await service.settings.refresh(deadline)
    await service.settings.refresh_phase_costs(account.run.project_dir, deadline)
    before = await service.totals.standing(account, deadline)
    caller = await service.callers.look_up(pid)
    done = await service.checks.advance(account, request.from_phase, request.to_phase, request.override, caller.by)
    standing = service.totals.standing_known(account, before)
    if done.verdict.refusal is not None or (done.database and can_run_ic):
        await service.checks.record(done.run, standing.balance, done.verdict, "advance", pid, deadline)
    lines = {line.name: line for line in phase_lines(service, account)}
    return wire.AdvanceAnswer(
        run=done.run.id,
        advanced=done.completed is not None,
        line=done.line,
        phase=done.run.phase,
        completed=None if done.completed is None else lines.get(done.completed.phase),
        overridden=done.verdict.override,
        note=done.verdict.note,
        spend=answers.spend(standing),
        ic_run=done.run.adopted.run_id if done.database and done.run.adopted is not None else None,
        ic_directory=os.path.dirname(os.path.dirname(done.database)) if done.database else None,
    )


def _standing_now(context: Context, request: wire.Naming) -> Standing | None:
    """Return the standing of a request's run; None if that takes waiting.

    An unknown run takes waiting, because intercore may have started it.
    """
    service = context.service
    try:
        standing = service.totals.standing_now(request.run, request.scope, request.session, request.hints)
    except NoRunError:
        return None
    if standing is not None and service.adoption.stale_why(standing.run, anyio.current_time()) is not None:
        return None
    return standing


async def _remaining_later(context: Context, request: wire.Remaining) -> wire.RemainingAnswer:
    standing, tied = await choose_standing(context, request, deadline_of(request))
    return _remaining(standing, tied)


async def _check_later(context: Context, request: wire.Check, pid: int) -> wire.CheckAnswer:
    standing, tied = await choose_standing(context, request, deadline_of(request))
    verdict = policy.checked(standing.run, standing.balance, request.override, now_micros())
    return await _recorded(context, request, pid, standing, verdict, tied)


async def _recorded(
    context: Context,
    request: wire.Check,
    pid: int,
    standing: Standing,
    verdict: Verdict,
    tied: tuple[str, ...] = (),
) -> wire.CheckAnswer:
    await context.service.checks.record(standing.run, standing.balance, verdict, "check", pid, deadline_of(request))
    return _checked(standing, verdict, tied)


def _remaining(standing: Standing, tied: tuple[str, ...] = ()) -> wire.RemainingAnswer:
    return wire.RemainingAnswer(
        run=standing.run.id, phase=standing.run.phase, spend=answers.spend(standing), tied=answers.listed_runs(tied)
    )


def _checked(standing: Standing, verdict: Verdict, tied: tuple[str, ...] = ()) -> wire.CheckAnswer:
    return wire.CheckAnswer(
        run=standing.run.id,
        phase=standing.run.phase,
        allowed=verdict.allowed,
        refusal=verdict.refusal,
        overridden=verdict.override,
        note=verdict.note,
        spend=answers.spend(standing),
        tied=answers.listed_runs(tied),
    )
