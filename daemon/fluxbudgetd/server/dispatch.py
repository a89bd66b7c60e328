"""Which function carries out which request."""

from collections.abc import Awaitable, Callable
from typing import Any

from fluxbudgetd.server.commands import command
from fluxbudgetd.server.handlers import Context, budget, doctor, events, hooks, reviews, runs, service, statusline
from fluxbudgetd.server.requests import Handled, Stream
from fluxbudgetd.wire import messages as wire

Answer = Handled | Awaitable[Handled] | Stream


def handle(context: Context, request: wire.AnyRequest) -> Answer:
    """Carry out a request; raise `FluxError`, at once or when the answer is awaited.

    A request that has nothing to wait for is answered at once. That is the usual case for hooks.
    """
    return _HANDLERS[type(request)](context, request)


_HANDLERS: dict[type[wire.Request], Callable[[Context, Any], Answer]] = {
    wire.Ping: service.ping,
    wire.Doctor: doctor.doctor,
    wire.Remaining: budget.remaining,
    wire.Check: budget.check,
    wire.Advance: budget.advance,
    wire.Status: runs.status,
    wire.RunStart: runs.run_start,
    wire.RunList: runs.run_list,
    wire.RunShow: runs.run_show,
    wire.RunSet: runs.run_set,
    wire.RunAllow: runs.run_allow,
    wire.RunAttach: runs.run_attach,
    wire.RunDetach: runs.run_detach,
    wire.RunFinish: runs.run_finish,
    wire.RunCancel: runs.run_cancel,
    wire.Estimates: reviews.estimates,
    wire.TriageRequest: reviews.triage,
    wire.Report: reviews.report,
    wire.Calibrate: reviews.calibrate,
    wire.Subscribe: events.subscribe,
    wire.Hook: hooks.hook,
    wire.StatusLine: statusline.statusline,
    wire.Command: command,
}
