"""Estimates, the budget cut, the cost report, and what history teaches."""

import os

from fluxbudgetd.errors import NoRunError
from fluxbudgetd.policy import estimates as policy
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of, find
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.text import fold


async def estimates(context: Context, request: wire.Estimates) -> wire.EstimatesAnswer:
    """Answer what agents are expected to cost."""
    reviews, deadline = context.service.reviews, deadline_of(request)
    rules = await reviews.rules(request.project_dir or await _project(context, request.hints, deadline), deadline)
    means, stale_why = await reviews.means(request.model, deadline)
    return wire.EstimatesAnswer(
        estimates={
            name: wire.AgentEstimate(
                est_tokens=answers.capped(one.est_tokens),
                est_billing=answers.capped(one.est_billing),
                sample_size=one.sample_size,
            )
            for name, one in means.items()
        },
        defaults={name: rules.agent_defaults[name] for name in policy.CATEGORIES},
        slicing_multiplier=rules.slicing_multiplier if request.slicing else 1.0,
        stale_why=stale_why,
    )


async def _project(context: Context, hints: wire.Hints, deadline: float) -> str | None:
    """Return the project of the run that hints mean; of none, or of several, the working directory."""
    try:
        state = await context.service.totals.find_if_any(None, None, None, hints, deadline)
    except NoRunError:
        state = None
    return hints.cwd if state is None else state.run.project_dir


async def triage(context: Context, request: wire.TriageRequest) -> wire.TriageAnswer:
    """Answer which agents are launched, after that has been kept."""
    service, deadline = context.service, deadline_of(request)
    state = await service.totals.find_if_any(request.run, request.scope, request.session, request.hints, deadline)
    standing = None if state is None else await service.totals.standing(state, deadline)
    decided = await service.reviews.triage(
        request, None if state is None else state.run, None if standing is None else standing.balance, deadline
    )
    stale = (None if standing is None else standing.stale_why, decided.stale_why)
    return answers.triage(decided.triage, decided.note, next(filter(None, stale), None))


async def report(context: Context, request: wire.Report) -> wire.ReportAnswer:
    """Answer what a triage's agents, or those of all of a run's triages, have cost."""
    service, deadline = context.service, deadline_of(request)
    if request.triage is not None:
        found, made = await service.reviews.report(request.triage, deadline)
        run = found.run
    else:
        state = await find(context, request, deadline)
        await service.totals.standing(state, deadline)
        made, run = await service.reviews.report_run(state, deadline), state.run.id
    return wire.ReportAnswer(run=run, triages=made.triages, report=made.report, stale_why=made.stale_why)


async def calibrate(context: Context, request: wire.Calibrate) -> wire.CalibrateAnswer:
    """Answer what phases and agents have really cost."""
    service, deadline = context.service, deadline_of(request)
    states = list(service.accounts.runs.values())
    standings = await service.totals.standings(states, deadline)
    for state in states:
        service.accounts.require_loaded(state)
    made, stale_why = await service.reviews.calibrate(deadline)
    stale = next((one.stale_why for one in standings if one.stale_why is not None), stale_why)
    return wire.CalibrateAnswer(
        calibration=made, path=fold(os.fsencode(service.settings.calibration_path)), stale_why=stale
    )
