"""Warm requests, one at a time and many at once, and short connections, each compared with a bare echo."""

from __future__ import annotations  # array[float] is only a type checker's

import socket
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common import ROOT, Row, ratio, spread, timed, world
from databases import SMALL, database
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness import daemon as harness


class _Servers(NamedTuple):
    """The pids and sockets of the daemon and an echo server, and a request for the daemon."""

    daemon: int
    daemon_path: Path
    echo: int
    echo_path: Path
    request: messages.Remaining


@contextmanager
def _servers(base: Path, kind: str) -> Iterator[_Servers]:
    """Start the daemon, and the echo server of this kind (see echo_server.py)."""
    with world("warm", base) as home:
        database(base, home.interstat, SMALL)
        # A file that was written within the last two seconds is read again for each request.
        time.sleep(2.5)
        daemon = home.start()
        run = harness.started(home, session="s5", whole=True, token_budget="none")
        path = base / f"{kind}.sock"
        echo = subprocess.Popen([sys.executable, str(ROOT / "bench" / "echo_server.py"), kind, str(path)])
        try:
            harness.wait_for(lambda: _is_listening(path), "the echo server")
            yield _Servers(daemon.process.pid, home.socket, echo.pid, path, messages.Remaining(run=run))
        finally:
            echo.kill()
            echo.wait()


def _is_listening(path: Path) -> bool:
    """Return True if a server accepts connections. (Its socket exists a moment earlier.)"""
    with socket.socket(socket.AF_UNIX) as peer:
        return peer.connect_ex(str(path)) == 0


def warm_request(base: Path, rounds: int) -> Iterator[Row]:
    """Send requests while nothing changes. The client does the same for both servers: it sends and receives bytes."""
    with (
        _servers(base, "anyio") as servers,
        socket.socket(socket.AF_UNIX) as daemon,
        socket.socket(socket.AF_UNIX) as echo,
    ):
        daemon.connect(str(servers.daemon_path))
        echo.connect(str(servers.echo_path))
        frame = encode_frame(messages.encode(servers.request))

        def round_trip(peer: socket.socket) -> None:
            peer.sendall(frame)
            peer.recv(65536)

        round_trip(daemon)
        ours, bare = [], []
        for _ in range(rounds):
            ours.append(timed(partial(round_trip, daemon)))
            bare.append(timed(partial(round_trip, echo)))
    yield ratio("warm request ÷ a bare anyio echo", ours, bare, 1.2)
    yield Row("warm request", spread(ours), "", None)
    yield Row("a bare anyio echo", spread(bare), "", None)


def load(base: Path, slices: int, seconds: float) -> Iterator[Row]:
    """Send requests over 1, 10 and 100 connections at once, alternating with the echo in slices of time."""
    with _servers(base, "protocol") as servers:
        frame = encode_frame(messages.encode(servers.request))
        for connections in (1, 10, 100):
            ours, bare = array("d"), array("d")
            for number in range(slices):
                sides = ((servers.daemon_path, ours), (servers.echo_path, bare))
                for path, times in sides[:: 1 if number % 2 else -1]:
                    times.extend(_slice(path, connections, seconds, frame))
            lasted = slices * seconds
            name = f"{connections} connection{'s' if connections > 1 else ''} at once"
            share, least = len(ours) / len(bare), None if connections == 1 else 0.3
            target, met = ("", None) if least is None else (f"≥ {least:g}", share >= least)
            yield Row(f"requests/s ÷ those of a bare asyncio.Protocol echo, {name}", f"{share:.2f}", target, met)
            yield Row(f"warm requests, {name}", f"{spread(ours)}, {len(ours) / lasted:.0f}/s", "", None)
            yield Row(f"the bare echo, {name}", f"{spread(bare)}, {len(bare) / lasted:.0f}/s", "", None)


def short_connections(base: Path, slices: int, connections: int) -> Iterator[Row]:
    """Measure the server's CPU time per short connection: connect, send one request, read the answer, close."""
    with _servers(base, "protocol") as servers:
        frame = encode_frame(messages.encode(servers.request))
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(slices):
            for pid, path, times in (
                (servers.daemon, servers.daemon_path, ours),
                (servers.echo, servers.echo_path, bare),
            ):
                before = _cpu_seconds(pid)
                for _ in range(connections):
                    with socket.socket(socket.AF_UNIX) as peer:
                        peer.connect(str(path))
                        peer.sendall(frame)
                        peer.recv(65536)
                times.append((_cpu_seconds(pid) - before) / connections)
        yield ratio("CPU for connect, request and close ÷ that of a bare asyncio.Protocol", ours, bare, 1.2)
        yield Row("… the daemon's", f"{statistics.median(ours) * 1e6:.0f} µs", "", None)
        yield Row("… the bare echo's", f"{statistics.median(bare) * 1e6:.0f} µs", "", None)


def _cpu_seconds(pid: int) -> float:
    """Return how long the main thread of a process, which runs its event loop, has been on a CPU."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _slice(path: Path, connections: int, seconds: float, frame: bytes) -> array[float]:
    command = [sys.executable, "-I", "-S", str(ROOT / "bench" / "generator.py"), str(path)]
    done = subprocess.run([*command, str(connections), str(seconds)], input=frame, stdout=subprocess.PIPE, check=True)
    times = array("d")
    times.frombytes(done.stdout)
    return times
