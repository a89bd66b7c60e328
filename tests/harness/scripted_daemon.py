"""A daemon with scripted answers and events, served by threads on a real socket."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.daemon import wait_for

AT = "2026-11-21T12:00:00.000000Z"
Answered = messages.AnyAnswer | messages.ErrorAnswer


def error(code: str, message: str = "m", hint: str = "h") -> messages.ErrorAnswer:
    return messages.ErrorAnswer(error=messages.ErrorInfo(code=code, message=message, hint=hint))


def event(
    seq: int, kind: str = "run.changed", run: str | None = "r1", **data: str | float | None
) -> messages.EventAnswer:
    return messages.EventAnswer(seq=seq, at=AT, run=run, kind=kind, data=data)


class ScriptedDaemon:
    """Answers `subscribe` from `events` and other requests with `answer`. `asked` has the requests so far.

    It serves between `open` and `close`. While `mute` is set, it accepts connections and does not answer.
    """

    def __init__(self, path: Path, answer: Callable[[messages.AnyRequest], Answered] | None = None) -> None:
        self.path = path
        self.answer = answer or (lambda _: error("unknown_op"))
        self.events: list[messages.EventAnswer] = []
        self.asked: list[messages.AnyRequest] = []
        self.refusal: messages.ErrorAnswer | None = None
        self.mute = threading.Event()
        self._speaking = threading.Condition()
        self._peers: list[socket.socket] = []
        self._streams: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._begin(self._accept, self._listener)

    def close(self) -> None:
        """Stop listening, and end every connection."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.speak()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        self._threads.clear()

    def cut(self) -> None:
        """End every connection, but keep listening."""
        with self._speaking:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
            self._streams.clear()

    def speak(self) -> None:
        """Answer again after `mute`."""
        self.mute.clear()
        with self._speaking:
            self._speaking.notify_all()

    def happen(self, *events: messages.EventAnswer) -> None:
        """Add events, and send them to the subscribers."""
        with self._speaking:
            self.events += events
        self.send(*events)

    def send(self, *answers: Answered) -> None:
        """Send answers to every subscriber, in one piece."""
        data = b"".join(encode_frame(messages.encode(answer)) for answer in answers)
        with self._speaking:
            for peer in self._streams:
                with contextlib.suppress(OSError):
                    peer.sendall(data)

    def subscriptions(self) -> list[messages.Subscribe]:
        return [request for request in list(self.asked) if isinstance(request, messages.Subscribe)]

    def wait_for_subscriber(self, count: int = 1) -> None:
        wait_for(lambda: len(self._streams) >= count, f"{count} subscribers")

    def _begin(self, work: Callable[[socket.socket], None], of: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(of,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with self._speaking:
                    self._peers.append(peer)
                self._begin(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        decoder = FrameDecoder()
        with peer, contextlib.suppress(OSError):
            while data := peer.recv(65536):
                decoder.feed(data)
                while (body := decoder.next()) is not None:
                    with self._speaking:
                        self._speaking.wait_for(lambda: not self.mute.is_set())
                        self._respond(peer, messages.decode_request(body))
        with self._speaking:
            self._peers.remove(peer)
            if peer in self._streams:
                self._streams.remove(peer)

    def _respond(self, peer: socket.socket, request: messages.AnyRequest) -> None:
        self.asked.append(request)
        answers: list[Answered]
        if not isinstance(request, messages.Subscribe):
            answers = [self.answer(request)]
        elif self.refusal is not None:
            answers = [self.refusal]
        else:
            last = max((one.seq for one in self.events), default=0)
            since = last if request.since is None else min(request.since, last)
            known = [one for one in self.events if one.seq > since]
            answers = [messages.SubscribedAnswer(since=since, last=last), *known]
            self._streams.append(peer)
        peer.sendall(b"".join(encode_frame(messages.encode(answer)) for answer in answers))
