"""A false daemon that records its requests and gives a fixed answer."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.daemon import Home

_PATIENCE = 60.0


def frame(value: object) -> bytes:
    """Return an answer as a frame."""
    return encode_frame(msgspec.msgpack.encode(value))


@contextmanager
def answering(home: Home, answer: bytes | None) -> Iterator[list[dict[str, Any]]]:
    """Serve at the home's socket; yield a list to which each request is added, as a map, before it is answered.

    With `answer` None it reads the request and does not answer, like a stopped daemon.
    """
    asked: list[dict[str, Any]] = []
    home.socket.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(_PATIENCE)
                    asked.append(msgspec.msgpack.decode(_request(peer)))
                    if answer is None:
                        peer.recv(1)  # until the client disconnects
                    else:
                        peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _request(peer: socket.socket) -> bytes:
    decoder = FrameDecoder()
    while (body := decoder.next()) is None:
        data = peer.recv(65536)
        if not data:
            raise ConnectionResetError("the client has disconnected")
        decoder.feed(data)
    return body
