"""The line for Claude Code's status line."""

import msgspec

from fluxbudgetd.errors import AmbiguousRunError
from fluxbudgetd.policy import statusline as policy
from fluxbudgetd.server import answers
from fluxbudgetd.server.handlers.common import Context, choose, deadline_of
from fluxbudgetd.server.handlers.hook_call import merged_hints
from fluxbudgetd.server.handlers.hook_input import parse, parsed_slowly
from fluxbudgetd.totals.choosing import Choice, no_run
from fluxbudgetd.wire import messages as wire


async def statusline(context: Context, request: wire.StatusLine) -> wire.StatusLineAnswer:
    """Return the line for Claude Code's status line."""
    totals, deadline = context.service.totals, deadline_of(request)
    hook_input = parse(request.input) if request.whole else None
    if hook_input is None:
        hook_input = await parsed_slowly(request.input, whole=request.whole)
    hints = merged_hints(request.hints, hook_input)
    try:
        choice = await _choose(context, request, hints, deadline)
    except AmbiguousRunError as exc:
        line = policy.undecided(exc.runs, width=request.width)
        return wire.StatusLineAnswer(run="", line=line, stale_why=None, tied=answers.listed_runs(exc.runs))
    standing = await totals.standing(choice.account, deadline)
    line = policy.line(
        run=standing.run,
        balance=standing.balance,
        rate=totals.burn(choice.account),
        stale=standing.stale_why is not None,
        width=request.width,
        colour=request.colour,
        tied=len(choice.tied),
    )
    return wire.StatusLineAnswer(
        run=standing.run.id, line=line, stale_why=standing.stale_why, tied=answers.listed_runs(choice.tied)
    )


async def _choose(context: Context, request: wire.StatusLine, hints: wire.Hints, deadline: float) -> Choice:
    choice = await choose(context, request, hints, deadline)
    if choice is None and hints.cwd != request.hints.cwd:
        # A directory that the daemon cannot examine may be a symlink; the command's own one is resolved.
        hints = msgspec.structs.replace(hints, cwd=request.hints.cwd)
        choice = await choose(context, request, hints, deadline)
    if choice is None:
        raise no_run(hints)
    return choice
