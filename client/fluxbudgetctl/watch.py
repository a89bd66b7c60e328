"""The verbs that stay: `watch` prints events as they come, `top` shows the runs live."""

import json
import math
import os
import signal
import sys
from typing import NoReturn

from fluxbudgetctl import environment, hot
from fluxbudgetctl.failure import Failure, say
from fluxbudgetctl.rendering import remark
from fluxbudgetctl.stream import Again, Anew, Lost, Stream, Told, Until
from fluxbudgetctl.verbs import Options
from fluxbudgetd.wire import codes, messages

_HEARTBEAT = 30.0
#: However seldom heartbeats are printed: this often the daemon says that it is there.
_WIRE_HEARTBEAT = 15.0
_KILLED = 128


def watch(options: Options) -> int:
    """`watch`: one JSON a line, until it is told to end or its reader has gone."""
    if options.tui:
        if options.since is not None or options.heartbeat is not None:
            raise Failure("--tui goes without --since and --heartbeat", "see 'fluxbudgetctl watch --help'", codes.USAGE)
        return top(options)
    signal.signal(signal.SIGTERM, _terminated)
    heartbeat = _HEARTBEAT if options.heartbeat is None else options.heartbeat
    # So many of the daemon's heartbeats are one printed.
    parts = math.ceil(heartbeat / _WIRE_HEARTBEAT)
    request = messages.Subscribe(
        since=options.since,
        run=options.run,
        heartbeat_ms=round((heartbeat / parts if parts else _WIRE_HEARTBEAT) * 1000),
        wait_ms=int(_seconds(options) * 1000),
    )
    out = None if sys.stdout is None else sys.stdout.fileno()  # closed by the caller: `>&-`
    # A pipe whose reader has gone has an error, so the end of `| head` is noticed before anything happens.
    until = None if out is None else Until(out, 0)
    silent = 0
    for burst in Stream(environment.socket(), request, _seconds(options), until=until).told():
        lines = []
        for told in burst:
            if isinstance(told, messages.HeartbeatAnswer):
                silent += 1
                if not parts or silent % parts:
                    continue
            else:
                silent = 0
            if (value := _printed(told)) is not None:
                lines.append(json.dumps(value) + "\n")
        if lines and out is not None:
            _write(out, "".join(lines).encode("ascii"))
    return codes.OK


def top(options: Options) -> int:
    """`top`."""
    from fluxbudgetctl.top.app import show  # noqa: PLC0415  rich costs 30 ms that no other verb pays

    run: str | None = options.run
    return show(environment.socket(), _seconds(options), run)


def _printed(told: Told) -> dict[str, object] | None:
    """Return the object that is printed; None for what is told on stderr instead."""
    match told:
        case messages.EventAnswer():
            return {name: getattr(told, name) for name in ("seq", "at", "run", "kind", "data")}
        case messages.HeartbeatAnswer():
            return {"kind": "heartbeat", "at": told.at, "seq": told.seq}
        case messages.LaggedAnswer():
            return {"kind": "lagged", "at": told.at, "seq": told.seq, "behind": told.behind}
        case Lost():
            remark(f"connection lost ({told.why}), waiting for the daemon")
        case Again():
            say("fluxbudgetctl: connected again")
        case Anew():
            say(f"fluxbudgetctl: the daemon's ledger is a new one, events go on behind number {told.since}")
    return None


def _write(out: int, data: bytes) -> None:
    # Past Python's own buffer: what is left in it would hold up the end when the reader does not read.
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(out, rest) :]


def _seconds(options: Options) -> float:
    return hot.PATIENT_SECONDS if options.timeout is None else float(options.timeout)


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(_KILLED + number)
