"""One function per request: the service's answers in the protocol's words."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fluxbudgetd.server.answers import Heard
from fluxbudgetd.server.handlers import budget, events, hooks, reviews, runs, service
from fluxbudgetd.server.handlers.common import Context
from fluxbudgetd.wire import messages as wire

__all__ = ["Context", "handle"]


Answer = wire.AnyAnswer | Awaitable[wire.AnyAnswer | Heard] | AsyncGenerator[wire.AnyAnswer, None]


def handle(context: Context, request: wire.AnyRequest) -> Answer:
    """Carry out a request; raises `FluxError`, at once or when it is awaited.

    What can be answered without waiting is answered without waiting: that is the hooks' usual case.
    """
    return _HANDLERS[type(request)](context, request)


_HANDLERS: dict[type[wire.Request], Callable[[Context, Any], Answer]] = {
    wire.Ping: service.ping,
    wire.Doctor: service.doctor,
    wire.Remaining: budget.remaining,
    wire.Check: budget.check,
    wire.Advance: budget.advance,
    wire.Status: runs.status,
    wire.RunStart: runs.run_start,
    wire.RunList: runs.run_list,
    wire.RunShow: runs.run_show,
    wire.RunSet: runs.run_set,
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
    wire.StatusLine: hooks.statusline,
}
