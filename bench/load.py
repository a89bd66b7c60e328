"""Warm requests, compared with a bare echo by the same kind of server: one at a time, and many at once."""

from __future__ import annotations  # array[float] is only a type checker's

import os
import socket
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import ROOT, Row, ratio, spread, timed, world
from databases import SMALL, database
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness import daemon as harness

_ECHO = """
import socket, sys
import anyio
async def main():
    async with await anyio.create_unix_listener(sys.argv[1]) as listener:
        async def echo(stream):
            async with stream:
                try:
                    while True:
                        await stream.send(await stream.receive())
                except anyio.EndOfStream:
                    pass
        await listener.serve(echo)
anyio.run(main)
"""


@contextmanager
def _servers(base: Path) -> Iterator[tuple[Path, Path, messages.Remaining]]:
    """Start the daemon and the echo server; yield their sockets, and a request for the daemon."""
    with world("warm", base) as home:
        database(base, home.interstat, SMALL)
        # A file that was written within the last two seconds is read again for each request.
        time.sleep(2.5)
        home.start()
        run = harness.started(home, session="s5", token_budget="none")
        path = base / "echo.sock"
        echo = subprocess.Popen([sys.executable, "-c", _ECHO, path])
        try:
            harness.wait_for(lambda: os.path.exists(path), "the echo server")
            yield home.socket, path, messages.Remaining(run=run)
        finally:
            echo.kill()
            echo.wait()


def warm_request(base: Path, rounds: int) -> Iterator[Row]:
    """Send requests while nothing changes."""
    with (
        _servers(base) as (daemon, echo, request),
        harness.Wire(daemon) as wire,
        socket.socket(socket.AF_UNIX) as peer,
    ):
        peer.connect(str(echo))
        frame = encode_frame(messages.encode(request))
        wire.ask(request)

        def round_trip() -> None:
            peer.sendall(frame)
            peer.recv(65536)

        ours, bare = [], []
        for _ in range(rounds):
            ours.append(timed(lambda: wire.ask(request)))
            bare.append(timed(round_trip))
    p50 = statistics.median(ours) * 1e6
    yield Row("warm request, p50", spread(ours), "≤ 80 µs", p50 <= 80)
    yield ratio("… ÷ a bare echo through an anyio server", ours, bare)
    yield Row("… the echo itself", spread(bare), "", None)


def load(base: Path, slices: int, seconds: float) -> Iterator[Row]:
    """Send requests over 1, 10 and 100 connections at once, in alternating slices of time with the echo."""
    with _servers(base) as (daemon, echo, request):
        frame = encode_frame(messages.encode(request))
        for connections in (1, 10, 100):
            ours, bare = array("d"), array("d")
            for number in range(slices):
                sides = ((daemon, ours), (echo, bare))
                for path, times in sides[:: 1 if number % 2 else -1]:
                    times.extend(_slice(path, connections, seconds, frame))
            lasted = slices * seconds
            name = f"{connections} connection{'s' if connections > 1 else ''} at once"
            yield Row(f"warm requests, {name}", f"{spread(ours)}, {len(ours) / lasted:.0f}/s", "", None)
            slower = statistics.median(ours) / statistics.median(bare)
            yield Row("… ÷ the bare echo", f"time {slower:.2f}, requests/s {len(ours) / len(bare):.2f}", "", None)
            yield Row("… the echo itself", f"{spread(bare)}, {len(bare) / lasted:.0f}/s", "", None)


def _slice(path: Path, connections: int, seconds: float, frame: bytes) -> array[float]:
    command = [sys.executable, "-I", "-S", str(ROOT / "bench" / "generator.py"), str(path)]
    done = subprocess.run([*command, str(connections), str(seconds)], input=frame, stdout=subprocess.PIPE, check=True)
    times = array("d")
    times.frombytes(done.stdout)
    return times
