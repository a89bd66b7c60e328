"""A daemon played by the test, which decides how each connection is handled."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from fluxbudgetd.wire.framing import FrameDecoder, encode_frame

_PATIENCE = 60.0


class Connection:
    """One client's connection."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self._decoder = FrameDecoder()

    def frames(self) -> Iterator[dict[str, Any]]:
        """Yield the client's frames, as maps, until it disconnects."""
        while True:
            while (body := self._decoder.next()) is None:
                data = self.socket.recv(1 << 16)
                if not data:
                    return
                self._decoder.feed(data)
            yield msgspec.msgpack.decode(body)

    def command(self) -> dict[str, Any]:
        """Return the next command with all of its stdin, and how many frames there were."""
        request: dict[str, Any] = {}
        for frame in self.frames():
            if not request:
                request = {**frame, "frames": 1}
            else:
                assert (frame["v"], frame["op"]) == (1, "stdin")
                later = {"more": frame["more"], "cut": frame["cut"], "frames": request["frames"] + 1}
                request = {**request, **later, "stdin": request["stdin"] + frame["stdin"]}
            if not request["more"]:
                return request
        raise EOFError("the client has disconnected")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self, data: bytes) -> dict[str, Any]:
        """Read a command completely, answer with these bytes, and return the command."""
        request = self.command()
        self.send(data)
        return request


class Peer:
    """Serves connections one after another, and keeps what `serve` returns for each.

    At the end, errors in `serve` fail the test. The socket stays, as after a killed daemon.
    """

    def __init__(self, path: Path, serve: Callable[[Connection], object]) -> None:
        self.served: list[Any] = []
        self._serve = serve
        self._failed: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX)
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            self._listener.bind(str(path))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        assert not self._failed, self._failed

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(_PATIENCE)
                try:
                    # A client disconnects as soon as it has what it needs.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
                        self.served.append(self._serve(Connection(peer)))
                except BaseException as exc:  # noqa: BLE001  otherwise the error would end the thread unnoticed
                    self._failed.append(exc)


def answer(**fields: Any) -> dict[str, Any]:
    """Return the answer to a command; `fields` replace its defaults."""
    return {"ok": True, "op": "command", "mine": True, "exit": 0, "out": b"", "err": b"", "exports": b"", **fields}


def framed(value: object) -> bytes:
    """Return a value as a frame."""
    return encode_frame(msgspec.msgpack.encode(value))
