"""The commands that hooks call: make the typed request, and render its answer as what the client prints."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from fluxbudgetd.errors import FluxError, RequestTimeoutError
from fluxbudgetd.server.commands.gathering import Gathering, Input, Patience, Result
from fluxbudgetd.server.commands.words import Options
from fluxbudgetd.server.handlers import Context, budget, hooks, runs, service, shell, statusline
from fluxbudgetd.server.requests import Handled, TrackedAnswer
from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire import replies
from fluxbudgetd.wire.replies import Reply

A = TypeVar("A", bound=wire.Answer)

# Without stdin, the status line shows the run of its directory. The rest of the time is for the answer.
_STATUS_LINE = Patience(empty=0.5, begun=0.75)
# Without its input, a hook has no answer, so it may wait until the end.
_HOOK = Patience(empty=1.0, begun=1.0)


def remaining(context: Context, options: Options) -> Result:
    """Carry out `remaining`."""
    request = wire.Remaining(**_naming(options))
    return _carried_out(
        lambda: budget.remaining(context, request),
        partial(replies.remaining, default=options.default, as_json=options.json),
        partial(replies.remaining_failed, default=options.default, as_json=options.json),
    )


def env(context: Context, options: Options) -> Result:
    """Carry out `env`."""
    request = wire.Remaining(**_naming(options))
    return _carried_out(lambda: budget.remaining(context, request), replies.env, replies.env_failed)


def check(context: Context, options: Options) -> Result:
    """Carry out `check`."""
    request = wire.Check(**_naming(options), override=options.override)
    return _carried_out(
        lambda: budget.check(context, request, options.pid),
        partial(replies.check, as_json=options.json),
        partial(replies.check_failed, require=options.require),
    )


def advance(context: Context, options: Options) -> Result:
    """Carry out `advance`. If only `ic` can move the run, the Python client takes over, and runs `ic`."""
    request = wire.Advance(
        **_naming(options), from_phase=options.from_phase, to_phase=options.to_phase, override=options.override
    )
    return _carried_out(
        lambda: budget.advance(context, request, options.pid, can_run_ic=False),
        lambda answer: None if answer.ic_run is not None else replies.advance(answer, as_json=options.json),
        replies.failed,
    )


def ping(context: Context, options: Options) -> Result:
    """Carry out `ping`."""
    took_ns = time.monotonic_ns() - options.started_ns
    took_ms = took_ns / 1e6 if options.started_ns > 0 and took_ns >= 0 else None
    return _carried_out(
        lambda: service.ping(context, wire.Ping()),
        partial(replies.ping, took_ms=took_ms, as_json=options.json),
        replies.failed,
    )


def numbers(context: Context, options: Options) -> Result:
    """Carry out `numbers`."""
    request = wire.RunShow(**_naming(options))
    return _carried_out(
        lambda: runs.run_show(context, request), partial(replies.numbers, as_json=options.json), replies.failed
    )


def tokens(context: Context, options: Options) -> Result:
    """Carry out `tokens`."""
    request = wire.Tokens(wait_ms=options.wait_ms, session=options.session, agent=options.agent, model=options.model)
    return _carried_out(lambda: shell.tokens(context, request), replies.tokens, replies.failed)


def defaults(context: Context, options: Options) -> Result:
    """Carry out `defaults`."""
    request = wire.Defaults(
        wait_ms=options.wait_ms, complexity=options.complexity, phase=options.phase, hints=options.hints
    )
    return _carried_out(
        lambda: shell.defaults(context, request), partial(replies.defaults, as_json=options.json), replies.failed
    )


def hook(context: Context, options: Options, command: wire.Command) -> Result:
    """Carry out `hook` as soon as its JSON is complete.

    A failure is an error answer, because the client decides whether it denies a launch.
    """

    def finish(stdin: Input) -> Result:
        if not stdin.data.strip():
            return wire.CommandAnswer()
        if not stdin.has_ended:
            raise RequestTimeoutError("the hook's input did not end in time", "")
        request = wire.Hook(
            **_naming(options, stdin.wait_ms),
            input=stdin.data,
            whole=stdin.is_whole,
            attended=options.attended,
        )
        return _carried_out(lambda: hooks.hook(context, request, options.pid), replies.hook, None)

    return Gathering(options.wait_ms, _HOOK, finish).add(command)


def status_line(context: Context, options: Options, command: wire.Command) -> Result:
    """Carry out `statusline` as soon as its JSON is complete, or without it."""

    def finish(stdin: Input) -> Result:
        request = wire.StatusLine(
            **_naming(options, stdin.wait_ms),
            input=stdin.data,
            whole=stdin.is_whole and stdin.has_ended,
            width=options.width,
            colour=options.colour,
        )
        return _carried_out(lambda: statusline.statusline(context, request), replies.statusline, replies.failed)

    return Gathering(options.wait_ms, _STATUS_LINE, finish).add(command)


def _naming(options: Options, wait_ms: int | None = None) -> dict[str, Any]:
    """Return the fields of a request that say which run is meant, and how long the client waits."""
    return {
        "wait_ms": options.wait_ms if wait_ms is None else wait_ms,
        "run": options.run,
        "scope": options.scope,
        "session": options.session,
        "hints": options.hints,
    }


def _carried_out(
    handle: Callable[[], A | TrackedAnswer[A] | Awaitable[A | TrackedAnswer[A]]],
    render: Callable[[A], Reply | None],
    fail: Callable[[str, str, int], Reply] | None,
) -> Result:
    """Call a handler and render its answer; the result is an awaitable only if the handler's is.

    If `render` returns None, the command line is left to the Python client.
    `fail` renders a failure: message, hint and exit code. If it is None, the failure is raised.
    """
    try:
        answer = handle()
    except FluxError as exc:
        return _failed(exc, fail)
    return _later(answer, render, fail) if isinstance(answer, Awaitable) else _rendered(answer, render)


async def _later(
    answer: Awaitable[A | TrackedAnswer[A]],
    render: Callable[[A], Reply | None],
    fail: Callable[[str, str, int], Reply] | None,
) -> Handled:
    try:
        return _rendered(await answer, render)
    except FluxError as exc:
        return _failed(exc, fail)


def _rendered(answer: A | TrackedAnswer[A], render: Callable[[A], Reply | None]) -> Handled:
    if isinstance(answer, TrackedAnswer):
        return TrackedAnswer(_answer(render(answer.answer)), answer.on_delivered)
    return _answer(render(answer))


def _failed(exc: FluxError, fail: Callable[[str, str, int], Reply] | None) -> wire.CommandAnswer:
    if fail is None:
        raise exc
    return _answer(fail(exc.message, exc.hint, replies.exit_code(exc.code)))


def _answer(reply: Reply | None) -> wire.CommandAnswer:
    if reply is None:
        return wire.CommandAnswer(mine=False)
    return wire.CommandAnswer(exit=reply.exit_code, out=reply.out, err=reply.err, exports=reply.exports)
