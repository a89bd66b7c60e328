"""A false daemon that records its requests and gives a fixed answer."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.daemon import Home

_PATIENCE = 60.0


def frame(value: object) -> bytes:
    """Return an answer as a frame."""
    return encode_frame(msgspec.msgpack.encode(value))


def replied(out: str = "", err: str = "", exit_code: int = 0, exports: str = "") -> bytes:
    """Return the answer to a `command` as a frame."""
    texts = {"out": out.encode(), "err": err.encode(), "exports": exports.encode()}
    return frame({"ok": True, "op": "command", "mine": True, "exit": exit_code, **texts})


#: The answer to a command line that the daemon leaves to the client.
NOT_MINE = frame(
    {"ok": True, "op": "command", "mine": False, "exit": 0, "out": b"", "err": b"", "exports": b""},
)


def refused(code: str, message: str = "m", hint: str = "h") -> bytes:
    """Return an error answer as a frame."""
    return frame({"ok": False, "error": {"code": code, "message": message, "hint": hint}})


@contextmanager
def answering(
    home: Home, answer: bytes | Callable[[dict[str, Any]], bytes] | None, place: str | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Serve at the home's socket; yield a list to which each request is added, as a map, before it is answered.

    A `command` is added with all of its stdin: like the daemon, this one waits until that ends or is a JSON object.
    With `answer` None it reads the request but does not answer, like a stopped daemon. `place` is another socket.
    """
    asked: list[dict[str, Any]] = []
    home.socket.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place or str(home.socket))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(OSError):
                    peer.settimeout(_PATIENCE)
                    request = _request(peer)
                    asked.append(request)
                    if answer is None:
                        while peer.recv(65536):  # stdin that follows, until the client disconnects
                            pass
                    else:
                        peer.sendall(answer if isinstance(answer, bytes) else answer(request))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _request(peer: socket.socket) -> dict[str, Any]:
    decoder = FrameDecoder()
    request: dict[str, Any] = msgspec.msgpack.decode(_body(peer, decoder))
    request["frames"] = [len(request.get("stdin", b""))]
    while request.get("more") and not _is_json(request["stdin"]):
        piece = msgspec.msgpack.decode(_body(peer, decoder))
        assert (piece["op"], piece["v"]) == ("stdin", 1), piece
        request["stdin"] += piece["stdin"]
        request["more"], request["cut"] = piece["more"], piece["cut"]
        request["frames"].append(len(piece["stdin"]))
    return request


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _body(peer: socket.socket, decoder: FrameDecoder) -> bytes:
    while (body := decoder.next()) is None:
        data = peer.recv(65536)
        if not data:
            raise ConnectionResetError("the client has disconnected")
        decoder.feed(data)
    return body
