"""Which function carries out which request."""

from collections.abc import Awaitable, Callable
from typing import Any

from fluxbudgetd.server.commands import command
from fluxbudgetd.server.handlers import (
    Context,
    budget,
    calibration,
    doctor,
    events,
    hooks,
    reviews,
    runs,
    service,
    shell,
    statusline,
)
from fluxbudgetd.server.requests import Handled, Stream
from fluxbudgetd.wire import messages as wire

Answer = Handled | Awaitable[Handled] | Stream


def handle(context: Context, request: wire.AnyRequest, pid: int) -> Answer:
    """Carry out a request of a process; raise `FluxError`, at once or when the answer is awaited.

    A request that has nothing to wait for is answered at once. That is the usual case for hooks.
    """
    if (handler := _HANDLERS_WITH_CALLER.get(type(request))) is not None:
        return handler(context, request, pid)
    return _HANDLERS[type(request)](context, request)


_HANDLERS: dict[type[wire.Request], Callable[[Context, Any], Answer]] = {
    wire.Ping: service.ping,
    wire.Doctor: doctor.doctor,
    wire.Remaining: budget.remaining,
    wire.Sync: service.sync,
    wire.Status: runs.status,
    wire.RunList: runs.run_list,
    wire.RunShow: runs.run_show,
    wire.Estimates: reviews.estimates,
    wire.TriageRequest: reviews.triage,
    wire.Report: reviews.report,
    wire.Calibrate: calibration.calibrate,
    wire.Subscribe: events.subscribe,
    wire.StatusLine: statusline.statusline,
    wire.Tokens: shell.tokens,
    wire.Defaults: shell.defaults,
}

#: These also get the id of the process that sent the request, because what they change is recorded with its cause, or
#: refused inside a session.
_HANDLERS_WITH_CALLER: dict[type[wire.Request], Callable[[Context, Any, int], Answer]] = {
    wire.Check: budget.check,
    wire.Advance: budget.advance,
    wire.RunStart: runs.run_start,
    wire.RunSet: runs.run_set,
    wire.RunAllow: runs.run_allow,
    wire.RunAttach: runs.run_attach,
    wire.RunDetach: runs.run_detach,
    wire.RunFinish: runs.run_finish,
    wire.RunCancel: runs.run_cancel,
    wire.Loosen: service.loosen,
    wire.Hook: hooks.hook,
    wire.Command: command,
}
