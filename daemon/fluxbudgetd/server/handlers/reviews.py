"""Reviews: estimates, the budget cut, the cost report."""

from fluxbudgetd.decisions.reviews import TriageResult
from fluxbudgetd.errors import NoRunError
from fluxbudgetd.model import Triage
from fluxbudgetd.policy import estimates as policy
from fluxbudgetd.policy import triage as triage_policy
from fluxbudgetd.server.answers import capped
from fluxbudgetd.server.handlers.common import Context, choose, deadline_of, find_standing
from fluxbudgetd.structs import converted
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import ties


async def estimates(context: Context, request: wire.Estimates) -> wire.EstimatesAnswer:
    """Return what agents are expected to cost."""
    reviews, deadline = context.service.reviews, deadline_of(request)
    rules = await reviews.rules(request.project_dir or await _project(context, request.hints, deadline), deadline)
    means, stale_why = await reviews.means(request.model, deadline)
    history, history_stale_why = await reviews.history(deadline)
    return wire.EstimatesAnswer(
        estimates={
            name: wire.AgentEstimate(
                est_tokens=capped(mean.est_tokens), est_billing=capped(mean.est_billing), sample_size=mean.sample_size
            )
            for name, mean in means.items()
        },
        defaults={name: rules.agent_defaults[name] for name in policy.CATEGORIES},
        slicing_multiplier=rules.slicing_multiplier if request.slicing else 1.0,
        stale_why=stale_why or history_stale_why,
        history=history,
    )


async def triage(context: Context, request: wire.TriageRequest) -> wire.TriageAnswer:
    """Decide which agents are launched, store that, and return it."""
    service, deadline = context.service, deadline_of(request)
    choice = await choose(context, request, request.hints, deadline)
    if choice is None:
        decided = await service.reviews.triage(request, None, None, deadline)
        return _triage_answer(decided, decided.note, decided.stale_why)
    run = choice.account.run
    standing = await service.totals.standing(choice.account, deadline)
    decided = await service.reviews.triage(request, run, standing.balance, deadline)
    tie = ties.applies(run.id, choice.tied) if choice.tied else ""
    note = "; ".join(filter(None, (tie, decided.note)))
    return _triage_answer(decided, note, standing.stale_why or decided.stale_why)


async def report(context: Context, request: wire.Report) -> wire.ReportAnswer:
    """Return what the agents of a triage, or of all the run's triages, have cost."""
    service, deadline = context.service, deadline_of(request)
    if request.triage is not None:
        found, costs = await service.reviews.report(request.triage, deadline)
        run = found.run
    else:
        account, _standing = await find_standing(context, request, deadline)
        costs, run = await service.reviews.report_run(account, deadline), account.run.id
    news = await service.calibrations.news(deadline)
    return wire.ReportAnswer(run=run, triages=costs.triages, report=costs.report, stale_why=costs.stale_why, news=news)


async def _project(context: Context, hints: wire.Hints, deadline: float) -> str | None:
    """Return the project of the run that hints name; the working directory if they name none, or several."""
    try:
        return (await context.service.totals.find(None, None, None, hints, deadline)).run.project_dir
    except NoRunError:
        return hints.cwd


def _triage_answer(result: TriageResult, note: str, stale_why: str | None) -> wire.TriageAnswer:
    decided = result.triage
    return converted(
        decided,
        wire.TriageAnswer,
        triage_id=decided.id,
        selected=_part(decided, (1, 2), is_selected=True),
        deferred=_part(decided, (1, 2), is_selected=False),
        by_stage={
            f"stage_{stage}": wire.TriageStage(
                selected=_part(decided, (stage,), is_selected=True),
                deferred=_part(decided, (stage,), is_selected=False),
            )
            for stage in (1, 2)
        },
        summary=triage_policy.summary(decided.agents, decided.budget, constrained=decided.sprint_constrained),
        note=note,
        stale_why=stale_why,
        limit="run" if decided.sprint_constrained else "type",
        overridable=result.overridable,
        history="samples" if result.has_history else "none",
    )


def _part(decided: Triage, stages: tuple[int, ...], *, is_selected: bool) -> wire.TriagePart:
    chosen = [line for line in decided.agents if line.stage in stages and (line.action == "Selected") == is_selected]
    return wire.TriagePart(agents=len(chosen), est_tokens=capped(triage_policy.tokens(chosen)))
