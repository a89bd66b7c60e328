"""The failure that the native client passes to this one: `FLUXBUDGETCTL_FAILED="KIND[ DETAIL]"`."""

from __future__ import annotations

import os

from fluxbudgetctl import environment
from fluxbudgetctl.failure import Failure, failure_of
from fluxbudgetctl.unanswered import hung_up, no_answer, not_connected, not_ours, not_understood, unreachable
from fluxbudgetd.wire import codes

_MOST_DIGITS = 9


def failure(handed: str, seconds: float) -> Failure | None:
    """Return the native client's failure; None if the daemon must be asked again, for an answer or for its message.

    `seconds` is the time limit that has run out after a `timeout`.
    """
    path = environment.socket()
    kind, _, detail = handed.partition(" ")
    number = int(detail) if detail.isascii() and detail.isdigit() and len(detail) <= _MOST_DIGITS else 0
    if kind == "error":
        known = {"code": detail, "message": codes.ERROR_CODES.get(detail, (0, ""))[1]}
        # The message of any other error is only known to the daemon.
        return failure_of(known) if detail in ("unknown_op", "timeout") else None
    failures = {
        "connect": not_connected(path, number, os.strerror(number)),
        "uid": not_ours(path, number),
        "closed": hung_up(path),
        "garbage": not_understood("it breaks the protocol"),
        "timeout": no_answer(path, seconds),
        "send": unreachable(path, os.strerror(number)),
    }
    return failures.get(kind)
