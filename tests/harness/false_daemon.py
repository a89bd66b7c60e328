"""Something in the daemon's place that keeps what it was asked, and answers what a test says."""

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
    """Serve at the home's socket; give the list that each request, as a map, is added to before it is answered.

    None: it reads the request and says nothing, as a stopped daemon does.
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
                        peer.recv(1)  # until the client gives up
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
            raise ConnectionResetError("the client has gone")
        decoder.feed(data)
    return body
