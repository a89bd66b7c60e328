"""A request of a hot verb: a map out, a map back."""

from __future__ import annotations

from fluxbudgetctl import environment
from fluxbudgetctl.connection import exchange, not_understood
from fluxbudgetctl.failure import failure_of
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.packed import PackedError, Value, pack, unpack


def ask(op: str, fields: dict[str, Value | bytes], seconds: float) -> dict[str, Value]:
    """Return the daemon's answer; raises `Failure`, also for an error answer."""
    request = {"v": codes.VERSION, "op": op, "wait_ms": int(seconds * 1000), **fields}
    body = exchange(environment.socket(), pack(request), seconds)
    try:
        answer = unpack(body)
    except PackedError as exc:
        raise not_understood(str(exc)) from None
    if not isinstance(answer, dict):
        raise not_understood("it is not a map")
    if answer.get("ok") is not True:
        raise failure_of(answer.get("error"))
    return answer
