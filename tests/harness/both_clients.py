"""Run one command line with both clients in the same environment, and compare all that they do."""

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from fluxbudgetd.wire.framing import FrameDecoder
from fluxbudgetd.wire.state_names import ALIVE, state_directory
from harness.daemon import Home

_PATIENCE = 60.0
# Durations differ between two runs of one program.
_TIMES = (
    (re.compile(rb"within [0-9.]+ s"), b"within T s"),
    (re.compile(rb"answered in [0-9.]+ ms"), b"answered in T ms"),
    (re.compile(rb'"round_trip_ms": [0-9]+\.[0-9]{1,3}'), b'"round_trip_ms": T'),
)


class Outcome(NamedTuple):
    """Everything that can be observed of one call."""

    code: int
    stdout: bytes
    stderr: bytes
    asked: list[Any]
    """The requests, with their fields in order."""
    exported: bytes | None


class Answerer:
    """A daemon that reads a request and answers with any bytes, in pieces."""

    def __init__(self, path: Path) -> None:
        self.pieces: Sequence[bytes] = ()
        self.asked: list[Any] = []
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                peer.settimeout(_PATIENCE)
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        decoder = FrameDecoder()
        while (body := decoder.next()) is None:
            data = peer.recv(1 << 20)
            if not data:
                return
            decoder.feed(data)
        request = msgspec.msgpack.decode(body)
        del request["wait_ms"]
        # Lists keep the order of the fields.
        self.asked.append([*request.items()])
        for piece in self.pieces:
            peer.sendall(piece)


class ClientPair:
    """A home directory in which both clients run."""

    def __init__(self, root: Path, python: Sequence[str], native: Sequence[str]) -> None:
        self.home = Home(root)
        self.clients = {"python": python, "native": native}
        self.exports = root / "exports"
        self.states = Path(state_directory(str(self.home.socket)))
        self.states.mkdir(parents=True, mode=0o700)
        for kind in ("runs", "sessions", "scopes"):
            (self.states / kind).mkdir()
        (self.states / ALIVE).touch(mode=0o600)

    def call(
        self,
        client: str,
        arguments: Sequence[str | bytes],
        environ: Mapping[str, str | bytes],
        given: bytes,
        answerer: Answerer | None,
    ) -> Outcome:
        """Call one of the clients."""
        self.exports.unlink(missing_ok=True)
        if answerer is not None:
            answerer.asked = []
        result = subprocess.run(
            [*self.clients[client], *arguments],
            env={**self.home.environ, "CLAUDE_ENV_FILE": str(self.exports), **environ},
            cwd=self.home.project,
            input=given,
            capture_output=True,
            timeout=60,
            check=False,
        )
        stdout, stderr = result.stdout, result.stderr
        for pattern, written in _TIMES:
            stdout, stderr = pattern.sub(written, stdout), pattern.sub(written, stderr)
        exported = self.exports.read_bytes() if self.exports.exists() else None
        return Outcome(result.returncode, stdout, stderr, answerer.asked if answerer else [], exported)

    def require_alike(
        self,
        *arguments: str | bytes,
        environ: Mapping[str, str | bytes] | None = None,
        given: bytes = b"",
        answerer: Answerer | None = None,
        number: int | None = None,
    ) -> Outcome:
        """Call both clients; fail unless their outcomes are equal. Return the outcome.

        `number` identifies the call in the failure's message.
        """
        python, native = (self.call(name, arguments, environ or {}, given, answerer) for name in self.clients)
        call = (number, arguments, environ, given, answerer and answerer.pieces)
        assert native == python, f"{call}\nnative: {native}\npython: {python}"
        return python
