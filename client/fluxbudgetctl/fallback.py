"""What the piped verbs do if the pipe gives no answer: state files, defaults, an older daemon's requests."""

import json
import os
import site
import sys
from typing import Any

from fluxbudgetctl import environment, hard_stop, state_file
from fluxbudgetctl.arguments import Options
from fluxbudgetctl.delivery import debug, deliver
from fluxbudgetctl.failure import Failure, limit_stderr
from fluxbudgetctl.json_fields import text_field
from fluxbudgetctl.pipe import Call
from fluxbudgetctl.stdio import Stdin
from fluxbudgetctl.unanswered import NO_SOCKET
from fluxbudgetd.wire import codes, replies, stops
from fluxbudgetd.wire.text import fold, one_line


def run(call: Call, options: Options, failure: Failure) -> int:
    """Carry out a verb without the pipe, which ended with this failure; return the exit code or raise `Failure`."""
    limit_stderr(call.deadline if call.is_claudes else None)
    if call.stdin is not None:
        _read_json(call.stdin, call.deadline)
    if call.verb == "hook":
        return deliver(_hook(call, options, failure), call)
    try:
        reply = _reply(call, options, failure)
    except Failure as exc:
        reply = _failed(call.verb, options, exc)
    return deliver(reply, call)


def _read_json(stdin: Stdin, deadline: float) -> None:
    """Read stdin until it holds a complete JSON object, ends or reaches its limit, or until the deadline."""
    while not stdin.has_ended and not stdin.is_cut and not _is_json(stdin.data) and stdin.wait(deadline):
        stdin.read()


def _is_json(data: bytes | bytearray) -> bool:
    if not data.rstrip().endswith(b"}"):
        return False
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _reply(call: Call, options: Options, failure: Failure) -> replies.Reply:
    """Return the reply from an older daemon or a state file; raises `Failure`."""
    if failure.code == "unknown_op":
        if sys.flags.no_site:  # bare.py finds only what is beside this package, which msgspec need not be
            site.main()
        from fluxbudgetctl import older_daemon  # noqa: PLC0415  msgspec costs more than the answer

        return older_daemon.ask(call, options)
    if failure.code != NO_SOCKET or call.verb not in ("remaining", "env", "check", "statusline", "numbers"):
        raise failure
    session = None if call.stdin is None else text_field(bytes(call.stdin.data), b"session_id")
    names = {name: getattr(options, name) for name in ("run", "scope", "session")}
    state = state_file.read_state(names, failure, None if session is None else fold(session))
    state.check(getattr(options, "override", None) or environment.override())
    state.shorten(getattr(options, "width", None) or environment.columns())
    answer: Any = state  # it has the attributes of all these answers
    if call.verb == "remaining":
        return replies.remaining(answer, default=options.default, as_json=options.json)
    if call.verb == "env":
        return replies.env(answer)
    if call.verb == "check":
        return replies.check(answer, as_json=options.json)
    if call.verb == "numbers":
        return replies.known_numbers(answer, as_json=options.json)
    return replies.statusline(answer)


def _failed(verb: str, options: Options, failure: Failure) -> replies.Reply:
    """Return what a verb prints if there is no answer from anywhere."""
    reason = failure.message, failure.hint, failure.exit_code
    if verb == "remaining":
        return replies.remaining_failed(*reason, default=options.default, as_json=options.json)
    if verb == "env":
        return replies.env_failed(*reason)
    if verb == "check":
        return replies.check_failed(*reason, require=options.require)
    return replies.failed(*reason)


def _hook(call: Call, options: Options, failure: Failure) -> replies.Reply:
    """Return what a hook prints: nothing, because a budget never breaks a session, or what stops the session.

    That is a hard limit that was exhausted when the daemon last wrote its state, or the denial that
    `$FLUXBUDGET_FAIL_CLOSED` asks for.
    """
    data = b"" if call.stdin is None else bytes(call.stdin.data)
    if not data:
        return replies.Reply(codes.OK)
    if failure.code == "unknown_op":
        try:
            return _reply(call, options, failure)
        except Failure as exc:
            failure = exc
    debug(call, failure.message)
    hook_input = hard_stop.HookInput(data)
    answer = hard_stop.answer(hook_input, failure.message)
    if answer is None and hook_input.is_launch and os.environ.get("FLUXBUDGET_FAIL_CLOSED") == "1":
        answer = stops.unanswered_launch(one_line(failure.message))
    return replies.Reply(codes.OK, "" if answer is None else json.dumps(answer) + "\n")
