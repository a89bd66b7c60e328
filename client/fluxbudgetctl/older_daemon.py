"""The piped verbs as typed requests.

For an older daemon that does not know `command` or one of the flags, and for an `advance` that intercore carries out.
"""

import os
import time
from typing import Any, TypeVar

from fluxbudgetctl import environment
from fluxbudgetctl.arguments import Options
from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.pipe import Call
from fluxbudgetd.wire import messages, replies

R = TypeVar("R", bound=messages.Naming)


def ask(asked: Call, options: Options) -> replies.Reply:
    """Carry out a verb within its time limit and return the reply; raises `Failure`."""
    return _VERBS[asked.verb](asked, options)


def _request(kind: type[R], options: Options, **fields: Any) -> R:
    return kind(run=options.run, scope=options.scope, session=options.session, hints=hints(), **fields)


def _remaining(asked: Call, options: Options) -> replies.Reply:
    answer = call(_request(messages.Remaining, options), messages.RemainingAnswer, asked.seconds)
    return replies.remaining(answer, default=options.default, as_json=options.json)


def _env(asked: Call, options: Options) -> replies.Reply:
    return replies.env(call(_request(messages.Remaining, options), messages.RemainingAnswer, asked.seconds))


def _check(asked: Call, options: Options) -> replies.Reply:
    override = options.override or environment.override()
    answer = call(_request(messages.Check, options, override=override), messages.CheckAnswer, asked.seconds)
    return replies.check(answer, as_json=options.json)


def _advance(asked: Call, options: Options) -> replies.Reply:
    request = _request(
        messages.Advance,
        options,
        from_phase=options.from_phase,
        to_phase=options.to_phase,
        override=options.override or environment.override(),
    )
    answer = call(request, messages.AdvanceAnswer, asked.seconds)
    if answer.ic_run is not None:
        from fluxbudgetctl import intercore  # noqa: PLC0415  imports subprocess

        answer = intercore.advance(answer, asked.seconds)
    return replies.advance(answer, as_json=options.json)


def _ping(asked: Call, options: Options) -> replies.Reply:
    before = time.perf_counter()
    answer = call(messages.Ping(), messages.PingAnswer, asked.seconds)
    return replies.ping(answer, (time.perf_counter() - before) * 1000, as_json=options.json)


def _numbers(asked: Call, options: Options) -> replies.Reply:
    answer = call(_request(messages.RunShow, options), messages.RunShowAnswer, asked.seconds)
    return replies.numbers(answer, as_json=options.json)


def _tokens(asked: Call, options: Options) -> replies.Reply:
    request = messages.Tokens(session=options.session, agent=options.agent, model=options.model)
    return replies.tokens(call(request, messages.TokensAnswer, asked.seconds))


def _defaults(asked: Call, options: Options) -> replies.Reply:
    request = messages.Defaults(complexity=options.complexity, phase=options.phase, hints=hints())
    return replies.defaults(call(request, messages.DefaultsAnswer, asked.seconds), as_json=options.json)


def _hook(asked: Call, options: Options) -> replies.Reply:
    data, is_whole = _input(asked)
    request = _request(messages.Hook, options, input=data, whole=is_whole)
    return replies.hook(call(request, messages.HookAnswer, asked.seconds))


def _statusline(asked: Call, options: Options) -> replies.Reply:
    request = _request(
        messages.StatusLine,
        options,
        input=_input(asked)[0],
        width=options.width or environment.columns(),
        colour=not (options.no_colour or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"),
    )
    return replies.statusline(call(request, messages.StatusLineAnswer, asked.seconds))


def _input(asked: Call) -> tuple[bytes, bool]:
    """Return what has been read of stdin, and whether that is all."""
    return (b"", True) if asked.stdin is None else (bytes(asked.stdin.data), not asked.stdin.is_cut)


_VERBS = {
    "remaining": _remaining,
    "env": _env,
    "check": _check,
    "advance": _advance,
    "ping": _ping,
    "numbers": _numbers,
    "tokens": _tokens,
    "defaults": _defaults,
    "hook": _hook,
    "statusline": _statusline,
}
