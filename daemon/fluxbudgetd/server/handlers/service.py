"""The daemon itself: its identity, `sync`, and what a client asks before it removes the service."""

import os

from fluxbudgetd import __version__
from fluxbudgetd.model import to_text
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, deadline_of, find
from fluxbudgetd.wire import codes
from fluxbudgetd.wire import messages as wire

_STALE_HINT = "ask again, or give more --timeout; fluxbudgetctl doctor says more"


def ping(context: Context, _request: wire.Ping) -> wire.PingAnswer:
    """Return the daemon's identity."""
    return wire.PingAnswer(
        version=__version__, protocol=codes.VERSION, pid=os.getpid(), started_at=to_text(context.started_at)
    )


async def loosen(context: Context, request: wire.Loosen, pid: int) -> wire.LoosenAnswer:
    """Record that the client does something that leaves runs without a limit, or refuse it."""
    caller = await context.service.callers.look_up(pid)
    await context.service.loosenings.record(request.action, caller)
    return wire.LoosenAnswer()


async def sync(context: Context, request: wire.Sync) -> wire.SyncAnswer:
    """Refresh adopted runs, and return once their usage is written back."""
    service, deadline = context.service, deadline_of(request)
    if request.run or request.scope or request.session:
        named = [await find(context, request, deadline)]
    else:
        await service.adoption.refresh(request.hints.cwd, None, deadline)
        await service.adoption.refresh_all(deadline)
        named = service.totals.followed()
    accounts = [
        account for account in named if account.run.adopted is not None or service.bead_labels.may_concern(account)
    ]
    standings = await service.totals.standings(accounts, deadline)
    stale = [
        wire.Finding(what=f"the numbers of run {standing.run.id} are stale: {standing.stale_why}", hint=_STALE_HINT)
        for standing in standings
        if standing.stale_why is not None
    ]
    for account in accounts:
        service.beads.request(account.run.id)
    faults = await service.write_back.sync(accounts, deadline)
    await service.bead_labels.sync(accounts, deadline)
    return wire.SyncAnswer(
        runs=tuple(account.run.id for account in accounts),
        faults=(
            *stale,
            *(wire.Finding(what=fault.message, hint=fault.hint) for fault in faults),
            *(answers.bead_findings(service) if service.settings.config.beads.write_back else ()),
        ),
    )
