"""A stand-in for Anthropic's Messages API that answers scripted conversations and records what it handed out."""

import json
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from traceback import format_exc
from typing import Any, Literal, Self

from harness.claude_code.script import LAST, MAIN, Block, Iteration, Place, Script, Turn, Usage, place_in, text

_AGENT = re.compile(r"agentId: (\w+)")

#: A turn of a conversation; one that broke off; and what Claude Code asks the model beside the conversation.
Kind = Literal["turn", "broken off", "summary", "title", "side question"]
_BESIDE: dict[Kind, str] = {
    "summary": "<analysis>Nothing much.</analysis>\n<summary>They talked.</summary>",
    "title": '{"title": "A talk"}',
    "side question": "By the way.",
}


@dataclass(frozen=True)
class Response:
    """What a request was answered with."""

    number: int
    kind: Kind
    session: str
    #: the type of the agent that asked
    agent: str
    model: str
    usage: Usage
    iterations: tuple[Iteration, ...]
    #: the request's body
    request: dict[str, Any]


class MessagesApi:
    """Answers the requests of any number of sessions, on listening sockets that they pass to it (`offline.py`)."""

    def __init__(self, place: Path) -> None:
        self.script = Script()
        #: in the order of their requests
        self.responses: list[Response] = []
        #: requests that it has no answer for, and failures of its own
        self.faults: list[str] = []
        #: the Unix socket that takes the listening sockets
        self.place = place
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._tries: Counter[tuple[str, str, Place | None]] = Counter()
        self._servers: list[tuple[_Server, threading.Thread]] = []
        self._desk = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Self:
        self._desk.bind(str(self.place))
        self._desk.listen()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._desk.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._desk.close()
        for server, thread in self._servers:
            server.shutdown()
            thread.join()
            server.server_close()

    def _take(self) -> None:
        """Serve on each listening socket that arrives."""
        while True:
            try:
                sender, _ = self._desk.accept()
            except OSError:  # shut down
                return
            with sender:
                _, descriptors, _, _ = socket.recv_fds(sender, 1, 1)
            server = _Server(self, socket.socket(fileno=descriptors[0]))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            self._servers.append((server, thread))

    def answer(self, request: dict[str, Any], session: str, agent: str) -> tuple[int, Turn, Response | None]:
        """Return the status code, the turn, and the response; there is none if the turn fails this time.

        `agent` is the id of the sub-agent that asks, or empty.
        """
        kind = _kind(request)
        place = place_in(request["messages"]) if kind == "turn" else None
        turn = self.script.turn(place) if place else Turn((text(_BESIDE.get(kind, "That was all.")),))
        with self._lock:
            tries = self._tries[session, agent, place]
            self._tries[session, agent, place] += 1
            if tries < len(turn.fails):
                return turn.fails[tries], turn, None
            number = next(self._numbers)
            response = Response(
                number=number,
                kind="broken off" if turn.breaks_after and not tries else kind,
                session=session,
                agent=self.script.conversations[place.name].agent if place else MAIN,
                model=request["model"],
                usage=turn.usage or _usage(number),
                iterations=turn.iterations,
                request=request,
            )
            self.responses.append(response)
        return 200, turn, response


def _kind(request: dict[str, Any]) -> Kind:
    """Return what a request asks for, as its text and its tools show."""
    last = json.dumps(request["messages"][-1])
    if "This is a side question" in last:
        return "side question"
    if "<analysis>" in last:
        return "summary"
    return "turn" if request.get("tools") else "title"


def _usage(number: int) -> Usage:
    """Return counts that no other response has."""
    return Usage(
        input=1_000 + 7 * number**2,
        output=300 + 11 * number**2,
        cache_read=20_000 + 13 * number**2,
        cache_5m=400 + 17 * number**2,
        cache_1h=50 + 19 * number**2,
    )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: MessagesApi, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.api = api

    def handle_error(self, *_: object) -> None:
        """Note the failure, unless it is only that the session ended without waiting for its answer."""
        if not isinstance(sys.exception(), ConnectionError):
            self.api.faults.append(format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name in the standard library
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer the question whether a server is there."""
        self._send(200, b"")

    def do_GET(self) -> None:
        """Refuse: nothing that a session needs is fetched."""
        self.server.api.faults.append(f"GET {self.path}")
        self._send(404, _error("not_found_error"))

    def do_POST(self) -> None:
        """Answer a request for a response of the model."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.partition("?")[0] != "/v1/messages":
            self.server.api.faults.append(f"POST {self.path}")
            return self._send(404, _error("not_found_error"))
        session = self.headers.get("X-Claude-Code-Session-Id", "")
        agent = self.headers.get("X-Claude-Code-Agent-Id", "")
        status, turn, response = self.server.api.answer(request, session, agent)
        if response is None:
            return self._send(status, _error("overloaded_error"))
        message = _message(turn, response)
        request_id = f"req_{response.number:06}"
        if not request.get("stream"):
            return self._send(200, json.dumps(message).encode(), request_id)
        events = list(_events(message))
        breaks = response.kind == "broken off"
        self._stream(events[: turn.breaks_after] if breaks else events, request_id)
        # (Without the end of the body, the client knows that the stream broke off.)
        self.close_connection = breaks
        return None

    def _send(self, status: int, body: bytes, request_id: str = "req_none") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("request-id", request_id)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _stream(self, events: Sequence[dict[str, Any]], request_id: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("request-id", request_id)
        self.end_headers()
        for event in events:
            chunk = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if events[-1]["type"] == "message_stop":
            self.wfile.write(b"0\r\n\r\n")


def _error(kind: str) -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": "scripted"}}).encode()


def _message(turn: Turn, response: Response) -> dict[str, Any]:
    blocks = [_numbered(block, response, position) for position, block in enumerate(turn.blocks)]
    calls = any(block["type"] == "tool_use" for block in blocks)
    usage = response.usage.as_json()
    if response.iterations:
        own = {"type": "message", **usage}
        usage["iterations"] = [own, *(iteration.as_json() for iteration in response.iterations)]
    return {
        "id": f"msg_{response.number:06}",
        "type": "message",
        "role": "assistant",
        "model": response.model,
        "content": blocks,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def _numbered(block: Block, response: Response, position: int) -> Block:
    """Give a call its id, and replace the recipient `LAST` of a message."""
    if block["type"] != "tool_use":
        return block
    arguments = block["input"]
    if arguments.get("to") == LAST:
        arguments = {**arguments, "to": _AGENT.findall(json.dumps(response.request["messages"]))[-1]}
    return {**block, "id": f"toolu_{response.number:06}_{position}", "input": arguments}


def _events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed message. As with the real API, the usage is not final until the end."""
    start = {**message, "content": [], "stop_reason": None}
    start["usage"] = {**message["usage"], "output_tokens": 1}
    start["usage"].pop("iterations", None)
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(message["content"]):
        empty, deltas = _parts(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}
    yield {"type": "message_stop"}


def _parts(block: Block) -> tuple[Block, list[Block]]:
    """Return how a block begins, and the pieces that complete it."""
    match block["type"]:
        case "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            return {**block, "thinking": "", "signature": ""}, [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case _:
            arguments = json.dumps(block["input"])
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
