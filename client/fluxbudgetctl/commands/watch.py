"""`watch` and `top`, which run until they are stopped: events as JSON lines, and a live view."""

import argparse
import json
import math
import os
import signal
import sys
from typing import NoReturn

import msgspec

from fluxbudgetctl import arguments, environment
from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetctl.event_stream import Disconnected, EventStream, LedgerReplaced, Notice, Reconnected
from fluxbudgetctl.failure import Failure, print_stderr
from fluxbudgetctl.live_connection import StopOn
from fluxbudgetctl.screens.output import note
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import one_line

_SHORTEST_HEARTBEAT, _LONGEST_HEARTBEAT = 0.1, 3600.0
_MAX_SEQ = 2**63 - 1
_DEFAULT_HEARTBEAT = 30.0
#: Seconds. The daemon sends heartbeats at least this often, even when fewer are printed.
_LONGEST_WIRE_HEARTBEAT = 15.0
_KILLED = 128


def add(commands: Subcommands) -> None:
    """Add the commands."""
    watch = add_command(commands, "watch", "print events as they happen, one JSON object per line", _watch, json=False)
    watch.add_argument("--since", type=_since, metavar="SEQ", help="start after this event (default: the latest)")
    watch.add_argument("--run", type=arguments.text, metavar="ID", help="only this run's events")
    watch.add_argument(
        "--heartbeat",
        type=_heartbeat,
        metavar="S",
        help="print a heartbeat after this many seconds without an event; 0: never (default: 30)",
    )
    watch.add_argument("--tui", action="store_true", help="the same as 'top'")
    top = add_command(commands, "top", "show the active runs live: phases, agents, events", _top, json=False)
    top.add_argument("--run", type=arguments.text, metavar="ID", help="select this run at the start")


def _watch(options: Options) -> int:
    """Print events until the reader of stdout goes away, or a signal arrives."""
    if options.tui:
        if options.since is not None or options.heartbeat is not None:
            message = "--tui cannot be combined with --since or --heartbeat"
            raise Failure(message, "see 'fluxbudgetctl watch --help'", codes.USAGE)
        return _top(options)
    signal.signal(signal.SIGTERM, _terminated)
    heartbeat = _DEFAULT_HEARTBEAT if options.heartbeat is None else options.heartbeat
    # Print one of this many heartbeats from the daemon; 0: print none.
    parts = math.ceil(heartbeat / _LONGEST_WIRE_HEARTBEAT)
    request = messages.Subscribe(
        since=options.since,
        run=options.run,
        heartbeat_ms=round((heartbeat / parts if parts else _LONGEST_WIRE_HEARTBEAT) * 1000),
        wait_ms=int(options.timeout * 1000),
    )
    out = None if sys.stdout is None else sys.stdout.fileno()  # closed by the caller: `>&-`
    # poll reports an error for a pipe without a reader, so `| head` ends the command even if no event comes.
    stop_on = None if out is None else StopOn(out, 0)
    heartbeats = 0
    for burst in EventStream(environment.socket(), request, options.timeout, stop_on=stop_on).bursts():
        lines = []
        for notice in burst:
            if isinstance(notice, messages.HeartbeatAnswer):
                heartbeats += 1
                if not parts or heartbeats % parts:
                    continue
            else:
                heartbeats = 0
            if (value := _printed(notice)) is not None:
                lines.append(json.dumps(value) + "\n")
        if lines and out is not None:
            _write(out, "".join(lines).encode("ascii"))
    return codes.OK


def _top(options: Options) -> int:
    from fluxbudgetctl.top.app import show  # noqa: PLC0415  rich costs 30 ms that no other command pays

    run: str | None = options.run
    return show(environment.socket(), options.timeout, run)


def _printed(notice: Notice) -> dict[str, object] | None:
    """Return the object to print; None for a notice that goes to stderr instead."""
    match notice:
        case messages.EventAnswer():
            by = None if notice.by is None else msgspec.structs.asdict(notice.by)
            return {**{name: getattr(notice, name) for name in ("seq", "at", "run", "kind", "data")}, "by": by}
        case messages.HeartbeatAnswer():
            return {"kind": "heartbeat", "at": notice.at, "seq": notice.seq}
        case messages.LaggedAnswer():
            return {"kind": "lagged", "at": notice.at, "seq": notice.seq, "behind": notice.behind}
        case Disconnected():
            note(f"connection lost ({notice.why}), waiting for the daemon")
        case Reconnected():
            print_stderr("fluxbudgetctl: connected again")
        case LedgerReplaced():
            note(f"the daemon has a new ledger; continuing after event {notice.since}")
    return None


def _write(out: int, data: bytes) -> None:
    # Not through Python's buffer: flushing what is left in it would delay the exit when the reader does not read.
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(out, rest) :]


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(_KILLED + number)


def _since(value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if not 0 <= number <= _MAX_SEQ:
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not an event number, 0 or more")
    return number


def _heartbeat(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if number and not _SHORTEST_HEARTBEAT <= number <= _LONGEST_HEARTBEAT:
        allowed = f"0, or {_SHORTEST_HEARTBEAT:g} to {_LONGEST_HEARTBEAT:g} seconds"
        raise argparse.ArgumentTypeError(f"{one_line(value)!r} is not {allowed}")
    return number
