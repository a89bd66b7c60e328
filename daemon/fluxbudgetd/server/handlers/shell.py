"""Requests of Clavain's shell functions."""

from collections.abc import Sequence

from fluxbudgetd.errors import BadInputError, NoRunError
from fluxbudgetd.model import Counts, Usage
from fluxbudgetd.policy import estimates, phases
from fluxbudgetd.server.answers import capped
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.threads import off_loop
from fluxbudgetd.wire import messages as wire

# An answer must fit into a frame.
_MOST_AGENTS = 1000
_HIGHEST_COMPLEXITY = 5


async def tokens(context: Context, request: wire.Tokens) -> wire.TokensAnswer:
    """Return what the agents of a session have used, or what an agent costs on average."""
    service, deadline = context.service, deadline_of(request)
    if request.session is not None:
        records, stale_why = await service.totals.records(request.session, deadline)
        used = await off_loop(len(records), _by_agent, records, request.agent)
        return wire.TokensAnswer(used=used, stale_why=stale_why)
    if request.agent is None:
        raise BadInputError("neither a session nor an agent was named", "give --session, or --agent")
    means, stale_why = await service.reviews.means(request.model, deadline)
    mean = means.get(estimates.plain_name(request.agent))
    if mean is None:
        return wire.TokensAnswer(stale_why=stale_why)
    found = wire.AgentMean(
        agent_name=request.agent,
        est_tokens=capped(mean.est_tokens),
        est_billing=capped(mean.est_billing),
        sample_size=mean.sample_size,
    )
    return wire.TokensAnswer(mean=found, stale_why=stale_why)


async def defaults(context: Context, request: wire.Defaults) -> wire.DefaultsAnswer:
    """Return the budget of a complexity, or what a phase is expected to cost."""
    service, deadline = context.service, deadline_of(request)
    settings = service.settings
    await settings.refresh(deadline)
    runs = settings.config.runs
    if request.phase is None:
        given = runs.complexity if request.complexity is None else request.complexity
        complexity = given if 1 <= given <= _HIGHEST_COMPLEXITY else _HIGHEST_COMPLEXITY
        return wire.DefaultsAnswer(tokens=runs.budgets.of_complexity(complexity), source="configuration")
    if request.complexity is not None:
        raise BadInputError("both a complexity and a phase were given", "give one of them")
    try:
        run = (await service.totals.find(None, None, None, request.hints, deadline)).run
        project, basis = run.project_dir, run.cost_basis
    except NoRunError:
        project, basis = request.hints.cwd or "", runs.cost_basis
    await settings.refresh_phase_costs(project, deadline)
    calibrations = settings.phase_calibrations(project)
    estimate = phases.estimate(request.phase, basis, settings.config.phases, *calibrations)
    return wire.DefaultsAnswer(tokens=estimate.tokens, source=estimate.source, sample_size=estimate.sample_size)


def _by_agent(records: Sequence[Usage], agent: str | None) -> tuple[wire.AgentTokens, ...]:
    """Return the sums of the agents with measured records, or of one agent, under the name that was asked for."""
    sums: dict[str, Counts] = {}
    plain = None if agent is None else estimates.plain_name(agent)
    for record in records:
        name = estimates.plain_name(record.agent)
        if not record.pending and (plain is None or name == plain):
            sums[name] = sums.get(name, Counts()) + record.counts
    most = sorted(sums, key=lambda name: (-sums[name].total, name))[:_MOST_AGENTS]
    return tuple(
        wire.AgentTokens(
            agent_name=agent or name,
            billing_tokens=capped(sums[name].billing),
            total_tokens=capped(sums[name].total),
            cache_read=capped(sums[name].cache_read),
        )
        for name in sorted(most)
    )
