"""The client against something else in the daemon's place."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from fluxbudgetd.wire.framing import encode_frame
from harness.daemon import Home
from harness.native import both_clients


@contextmanager
def false_daemon(home: Home, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something else at the socket's path, that answers in its own way."""
    home.socket.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
        listener.listen()

        def accept() -> None:
            try:
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.recv(65536)
                        serve(peer)
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=60)


def frame(value: object) -> bytes:
    return encode_frame(msgspec.msgpack.encode(value))


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "status"])
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", 69),
        (b"\0\0", 69),
        (b"\0\0\0\5ab", 69),
        (b"\xff\xff\xff\xff", 70),
        (b"\0\0\0\1\xc1", 70),
        (frame([1, 2]), 70),
        (frame({"ok": True}), 70),
        (frame({"ok": True, "op": "remaining", "spend": {}}), 70),
        (frame({"ok": True, "op": "remaining", "spend": {"budget": 1, "remaining": 1}}), 70),
        (frame({"ok": False}), 70),
        (frame({"ok": False, "error": {"code": "busy", "message": "m", "hint": "h"}}), 69),
        (frame({"ok": False, "error": {"code": "of-the-future", "message": "m", "hint": "h"}}), 70),
    ],
)
def test_answers_that_are_none(home: Home, verb: str, answer: bytes, code: int) -> None:
    with false_daemon(home, lambda peer: peer.sendall(answer)):
        result = home.ctl(verb, "--timeout", "5")
    assert (result.returncode, result.stdout) == (code, ""), result
    assert result.stderr.startswith("fluxbudgetctl: ")
    assert "Traceback" not in result.stderr
