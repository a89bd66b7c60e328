"""One function per request: the engine's answers in the protocol's words."""

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from fluxbudgetd import __version__, answers
from fluxbudgetd.engine import Engine, Standing
from fluxbudgetd.engine.book import RunState
from fluxbudgetd.ledger import moved_aside
from fluxbudgetd.model import to_text
from fluxbudgetd.policy import budget
from fluxbudgetd.policy.phases import MACRO_STAGES, macro_stage
from fluxbudgetd.wire import codes
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.text import shown_path

# The answer has to be back before the sender gives up.
_WAIT_SHARE = 0.75
_MAX_WAIT_SECONDS = 20.0
# A page fits into a frame whatever the runs are called: a line is at most about 12 kB.
_PAGE_RUNS = 64


class Context(msgspec.Struct):
    """What a handler works with. `connections` counts the open ones."""

    engine: Engine
    state_dir: str
    started_at: int
    connections: Callable[[], int]


def handle(context: Context, request: wire.AnyRequest) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer]:
    """Carry out a request; raises `FluxError`, at once or when it is awaited.

    What can be answered without waiting is answered without waiting: that is the hooks' usual case.
    """
    return _HANDLERS[type(request)](context, request)


def ping(context: Context, _request: wire.Ping) -> wire.PingAnswer:
    """Answer without looking at anything."""
    return wire.PingAnswer(
        version=__version__, protocol=codes.VERSION, pid=os.getpid(), started_at=to_text(context.started_at)
    )


def remaining(context: Context, request: wire.Remaining) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer]:
    """Answer what is left."""
    return _with_standing(context, request, _remaining)


def check(context: Context, request: wire.Check) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer]:
    """Answer whether the run may go on; nothing is remembered of the question."""
    return _with_standing(context, request, _check)


async def status(context: Context, request: wire.Status) -> wire.StatusAnswer:
    """Answer with the active runs, or the one that was named."""
    engine, deadline = context.engine, _deadline(request)
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
    run, changed = await context.engine.changes.start(request, _deadline(request))
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_list(context: Context, request: wire.RunList) -> wire.RunListAnswer:
    """Answer with the active runs, or all."""
    book = context.engine.book
    states = list(book.runs.values()) if request.all else book.active()
    lines, following = await _lines(context.engine, states, request.after, _deadline(request))
    return wire.RunListAnswer(runs=lines, next=following)


async def run_show(context: Context, request: wire.RunShow) -> wire.RunShowAnswer:
    """Answer with everything that is known of a run."""
    engine, deadline = context.engine, _deadline(request)
    state = await _find(context, request, deadline)
    standing = await engine.standing(state, deadline)
    cells = list(engine.book.cells(state))
    by_stage = answers.sums((macro_stage(cell.phase), counts) for _, cell, counts in cells)
    return wire.RunShowAnswer(
        run=answers.run_info(standing.run),
        spend=answers.spend(standing),
        totals=answers.tally("all", engine.book.measured(state)),
        by_phase=answers.tallies(answers.sums((cell.phase, counts) for _, cell, counts in cells), state.run.phases),
        by_stage=answers.tallies(by_stage, MACRO_STAGES),
        by_agent=answers.tallies(answers.sums((cell.agent, counts) for _, cell, counts in cells)),
        by_model=answers.tallies(answers.sums((cell.model, counts) for _, cell, counts in cells)),
        by_session=answers.tallies(answers.sums((session, counts) for session, _, counts in cells)),
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
    run, changed = await context.engine.changes.change(await _find(context, request, _deadline(request)), request)
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_attach(context: Context, request: wire.RunAttach) -> wire.RunAnswer:
    """Attach a session to a run."""
    deadline = _deadline(request)
    state = await context.engine.find(request.run, request.scope, None, request.hints, deadline)
    changed = await context.engine.changes.attach(request.attach, state, deadline)
    return wire.RunAnswer(run=answers.run_info(state.run), changed=changed)


async def run_detach(context: Context, request: wire.RunDetach) -> wire.RunAnswer:
    """Detach a session from its run, or from the run that was named."""
    deadline = _deadline(request)
    state = None
    if request.run or request.scope:
        state = await context.engine.find(request.run, request.scope, None, wire.Hints(), deadline)
    run = await context.engine.changes.detach(request.detach, state, deadline)
    return wire.RunAnswer(run=answers.run_info(run), changed=True)


async def run_finish(context: Context, request: wire.RunFinish) -> wire.RunAnswer:
    """End a run as done."""
    run, changed = await context.engine.changes.end(await _find(context, request, _deadline(request)), "done")
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def run_cancel(context: Context, request: wire.RunCancel) -> wire.RunAnswer:
    """End a run as cancelled."""
    run, changed = await context.engine.changes.end(await _find(context, request, _deadline(request)), "cancelled")
    return wire.RunAnswer(run=answers.run_info(run), changed=changed)


async def doctor(context: Context, request: wire.Doctor) -> wire.DoctorAnswer:
    """Look at the sources and answer with what is wrong."""
    engine = context.engine
    await engine.look_at_sources(_deadline(request))
    findings: list[wire.Finding] = []
    for source in answers.sources(engine):
        if source.state != "ok":
            findings.append(
                wire.Finding(what=f"{source.name}: {source.state}: {source.detail} ({source.path})", hint=source.hint)
            )
        findings.extend(wire.Finding(what=f"{source.name}: {note}", hint="update interstat") for note in source.notes)
    if engine.ledger_fault is not None:
        findings.append(wire.Finding(what=engine.ledger_fault, hint="check the disk and the permissions"))
    findings.extend(
        wire.Finding(
            what=f"a damaged ledger was moved aside: {shown_path(path)}",
            hint="rescue what is needed with 'sqlite3 FILE .recover', then delete it",
        )
        for path in await anyio.to_thread.run_sync(moved_aside, context.state_dir)
    )
    return wire.DoctorAnswer(
        version=__version__,
        pid=os.getpid(),
        state_dir=shown_path(context.state_dir),
        ledger=shown_path(engine.ledger.path),
        sources=answers.sources(engine),
        findings=tuple(findings),
        active_runs=len(engine.book.active()),
        followed_runs=len(engine.followed()),
        connections=context.connections(),
    )


_HANDLERS: dict[type[wire.Request], Callable[[Context, Any], wire.AnyAnswer | Awaitable[wire.AnyAnswer]]] = {
    wire.Ping: ping,
    wire.Remaining: remaining,
    wire.Check: check,
    wire.Status: status,
    wire.RunStart: run_start,
    wire.RunList: run_list,
    wire.RunShow: run_show,
    wire.RunSet: run_set,
    wire.RunAttach: run_attach,
    wire.RunDetach: run_detach,
    wire.RunFinish: run_finish,
    wire.RunCancel: run_cancel,
    wire.Doctor: doctor,
}


def _with_standing(
    context: Context, request: wire.Naming, answer: Callable[[Standing], wire.AnyAnswer]
) -> wire.AnyAnswer | Awaitable[wire.AnyAnswer]:
    standing = context.engine.standing_now(request.run, request.scope, request.session, request.hints)
    if standing is not None:
        return answer(standing)
    return _with_standing_later(context, request, answer)


async def _with_standing_later(
    context: Context, request: wire.Naming, answer: Callable[[Standing], wire.AnyAnswer]
) -> wire.AnyAnswer:
    deadline = _deadline(request)
    return answer(await context.engine.standing(await _find(context, request, deadline), deadline))


def _remaining(standing: Standing) -> wire.AnyAnswer:
    return wire.RemainingAnswer(run=standing.run.id, phase=standing.run.phase, spend=answers.spend(standing))


def _check(standing: Standing) -> wire.AnyAnswer:
    refusal = budget.refusal(standing.run, standing.balance)
    return wire.CheckAnswer(
        run=standing.run.id,
        phase=standing.run.phase,
        allowed=refusal is None,
        refusal=refusal,
        spend=answers.spend(standing),
    )


async def _find(context: Context, request: wire.Naming, deadline: float) -> RunState:
    return await context.engine.find(request.run, request.scope, request.session, request.hints, deadline)


def _deadline(request: wire.Request) -> float:
    """Return when the answer has to be made, by the loop's clock: one deadline for all that a request waits for."""
    wait = min(max(request.wait_ms, 0) / 1000 * _WAIT_SHARE, _MAX_WAIT_SECONDS)
    return anyio.current_time() + wait


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
