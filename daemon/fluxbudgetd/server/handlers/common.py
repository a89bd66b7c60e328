"""What the handlers share: their context, a request's deadline, the run that a request names."""

from collections.abc import Callable

import anyio
import msgspec

from fluxbudgetd.errors import FluxError
from fluxbudgetd.server.handlers.origins import Origins
from fluxbudgetd.server.once import Once
from fluxbudgetd.service import Service
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.choosing import Choice, no_run
from fluxbudgetd.wire import messages as wire

# The answer must reach the client before it gives up.
_WAIT_SHARE = 0.75
_MAX_WAIT_SECONDS = 20.0


class Context(msgspec.Struct):
    """What the handlers use.

    `connections` returns the number of open connections, `endpoint_fault` why new clients cannot connect, if so.
    `shown` remembers what sessions were told about their run, `origins` which sessions others continue.
    """

    service: Service
    state_dir: str
    started_at: int
    connections: Callable[[], int]
    endpoint_fault: Callable[[], FluxError | None] = lambda: None
    shown: Once = msgspec.field(default_factory=Once)
    origins: Origins = msgspec.field(default_factory=Origins)


def deadline_of(request: wire.Request) -> float:
    """Return the time, by the event loop's clock, by which a request must stop waiting."""
    wait = min(max(request.wait_ms, 0) / 1000 * _WAIT_SHARE, _MAX_WAIT_SECONDS)
    return anyio.current_time() + wait


async def find(context: Context, request: wire.Naming, deadline: float) -> RunAccount:
    """Return the account of the run that a request names; raise `NoRunError` if there is none.

    An adopted run is brought up to date first, and a run that another program has started since is found.
    """
    adoption, totals = context.service.adoption, context.service.totals
    await adoption.refresh(request.hints.cwd, None, deadline)
    account = await totals.find(request.run, request.scope, request.session, request.hints, deadline)
    if adoption.is_outdated(account.run):
        await adoption.refresh(None, account, deadline)
        account = await totals.find(request.run, request.scope, request.session, request.hints, deadline)
    return account


async def find_standing(context: Context, request: wire.Naming, deadline: float) -> tuple[RunAccount, Standing]:
    """Return the account of the run that a request names, and its standing; raise `NoRunError`."""
    began_at = anyio.current_time()
    account = await find(context, request, deadline)
    return account, await _standing(context, account, deadline, began_at)


async def choose(context: Context, request: wire.Naming, hints: wire.Hints, deadline: float) -> Choice | None:
    """Return the run whose limit applies to a request, up to date as with `find`, or None if there is none.

    Raises `NoRunError` for a name that no run has.
    """
    adoption, totals = context.service.adoption, context.service.totals
    await adoption.refresh(hints.cwd, None, deadline)
    choice = await totals.choose_if_any(request.run, request.scope, request.session, hints, deadline)
    if choice is not None and adoption.is_outdated(choice.account.run):
        await adoption.refresh(None, choice.account, deadline)
        choice = await totals.choose_if_any(request.run, request.scope, request.session, hints, deadline)
    return choice


async def choose_standing(context: Context, request: wire.Naming, deadline: float) -> tuple[Standing, tuple[str, ...]]:
    """Return the standing of the run whose limit applies to a request, and the tied runs (see `choosing`).

    Raises `NoRunError`.
    """
    began_at = anyio.current_time()
    choice = await choose(context, request, request.hints, deadline)
    if choice is None:
        raise no_run(request.hints)
    return await _standing(context, choice.account, deadline, began_at), choice.tied


async def _standing(context: Context, account: RunAccount, deadline: float, began_at: float) -> Standing:
    """Return a run's standing. It is stale, too, if the run's database was not read after the request began."""
    service = context.service
    standing = await service.totals.standing(account, deadline)
    stale_why = standing.stale_why or service.adoption.stale_why(account.run, began_at)
    return standing if stale_why == standing.stale_why else msgspec.structs.replace(standing, stale_why=stale_why)
