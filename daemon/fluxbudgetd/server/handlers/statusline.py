"""The line for Claude Code's status line."""

import msgspec

from fluxbudgetd.errors import NoRunError
from fluxbudgetd.policy import statusline as policy
from fluxbudgetd.server.handlers.common import Context, deadline_of
from fluxbudgetd.server.handlers.hook_call import merged_hints
from fluxbudgetd.server.handlers.hook_input import parse, parsed_slowly
from fluxbudgetd.wire import messages as wire


async def statusline(context: Context, request: wire.StatusLine) -> wire.StatusLineAnswer:
    """Return the line for Claude Code's status line."""
    totals, deadline = context.service.totals, deadline_of(request)
    hook_input = parse(request.input) if request.whole else None
    if hook_input is None:
        hook_input = await parsed_slowly(request.input, whole=request.whole)
    hints = merged_hints(request.hints, hook_input)
    try:
        account = await totals.find(request.run, request.scope, request.session, hints, deadline)
    except NoRunError:
        if hints.cwd == request.hints.cwd:
            raise
        # The input's directory may be a symlink; the command's own working directory is resolved.
        hints = msgspec.structs.replace(hints, cwd=request.hints.cwd)
        account = await totals.find(request.run, request.scope, request.session, hints, deadline)
    standing = await totals.standing(account, deadline)
    line = policy.line(
        run=standing.run,
        balance=standing.balance,
        rate=totals.burn(account),
        stale=standing.stale_why is not None,
        width=request.width,
        colour=request.colour,
    )
    return wire.StatusLineAnswer(run=standing.run.id, line=line, stale_why=standing.stale_why)
