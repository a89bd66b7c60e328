"""Garbage, incomplete frames, slow senders, too many connections and clients that never read affect no other client."""

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NoReturn

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from structlog.testing import capture_logs

from fluxbudgetd.server.limits import ByteCount, Limits
from fluxbudgetd.server.requests import Responder
from fluxbudgetd.server.server import Server
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import MAX_FRAME, encode_frame
from harness.daemon import PATIENCE, Daemon, Home, Wire, started, wait_for
from harness.interstat import Interstat

PONG = messages.PingAnswer(version="1", protocol=1, pid=1, started_at="")


@pytest.fixture
def run(home: Home, interstat: Interstat, daemon: Daemon) -> Iterator[str]:
    """Yield a run whose answers must be right during and after the test."""
    name = started(home, session="s1")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    yield name
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    assert home.spend(name).spent == 2
    assert daemon.process.poll() is None


def ended(peer: socket.socket) -> bool:
    peer.settimeout(20)
    try:
        while peer.recv(65536):
            continue
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xc1", "bad_request"),
        (b"hello", "bad_request"),
        (msgspec.msgpack.encode([1, 2]), "bad_request"),
        (msgspec.msgpack.encode({"op": "ping"}), None),  # the version has a default
        (msgspec.msgpack.encode({"v": 1}), "bad_request"),
        (msgspec.msgpack.encode({"v": 1, "op": "no-such-thing"}), "unknown_op"),
        (msgspec.msgpack.encode({"v": 2, "op": "ping"}), "unsupported_version"),
        (msgspec.msgpack.encode({"v": 2, "op": "of-the-future", "x": [{}]}), "unsupported_version"),
        (msgspec.msgpack.encode({"v": 1, "op": "remaining", "run": 5}), "bad_request"),
        (msgspec.msgpack.encode({"v": 1, "op": "run_start"}), "bad_request"),
        (msgspec.msgpack.encode({"v": 1, "op": "ping", "of-a-newer-client": {"a": [1]}}), None),
        (b"\x91" * 100_000, "bad_request"),
        (b"\x82\xa1v\x01\xa2op\xa3\xff\xfe\xfd", "bad_request"),  # the operation is not UTF-8
        (b"\x81\xa2op\xa3\xff\xfe\xfd", "bad_request"),
        (b"\x83\xa1v\x01\xa2op\xa9remaining\xa3run\xa2\xff\xfe", "bad_request"),
        (b"\x83\xa1v\x01\xa2op\xa4ping\xa2\xff\xfe\x01", None),  # an unknown field
        (b"\x83\xa1v\x02\xa2op\xa4ping\xa1x\xa2\xff\xfe", "unsupported_version"),
        *(
            (msgspec.msgpack.encode({"v": 1, "op": op}), "bad_request")
            for op in (5, None, b"ping", ["ping"], {"op": 1})
        ),
        *((msgspec.msgpack.encode({"v": v, "op": "ping"}), "bad_request") for v in (None, "1", b"1", 1.5, True, [1])),
        (msgspec.msgpack.encode({"v": 2**64 - 1, "op": "ping"}), "unsupported_version"),
        (msgspec.msgpack.encode({"op": "no-such-thing"}), "unknown_op"),
        # An error that quoted this in full would not fit into a frame.
        (msgspec.msgpack.encode({"v": 1, "op": "\0" * 1_000_000}), "unknown_op"),
        (msgspec.msgpack.encode({"v": 1, "op": "remaining", "run": "é" * 500_000}), "no_run"),
    ],
)
def test_invalid_message_gets_an_error_and_the_next_one_an_answer(
    home: Home, run: str, body: bytes, code: str | None
) -> None:
    with Wire(home.socket) as wire:
        wire.socket.sendall(encode_frame(body) + encode_frame(messages.encode(messages.Ping())))
        if code is not None:
            assert wire.error() == code
        else:
            assert isinstance(messages.decode_answer(wire.receive()), messages.PingAnswer)
        assert isinstance(messages.decode_answer(wire.receive()), messages.PingAnswer)


def test_unsupported_version_gets_the_supported_ones(home: Home, run: str) -> None:
    with Wire(home.socket) as wire:
        wire.socket.sendall(encode_frame(msgspec.msgpack.encode({"v": 7, "op": "ping"})))
        answer = messages.decode_answer(wire.receive())
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.message == "protocol version 7 is not supported; this daemon speaks version 1"


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**32 - 1])
def test_invalid_length_gets_an_error_and_is_closed(home: Home, run: str, length: int) -> None:
    with Wire(home.socket) as wire:
        wire.socket.sendall(length.to_bytes(4, "big") + b"x")
        assert wire.error() == "too_large"
        assert ended(wire.socket)


def test_random_garbage(home: Home, run: str) -> None:
    chance = random.Random(7)
    for _ in range(200):
        with Wire(home.socket) as wire:
            data = chance.randbytes(chance.randrange(1, 200))
            # Mostly short lengths, so that garbage reaches the decoder.
            wire.socket.sendall((b"\0\0\0" if chance.random() < 0.7 else b"") + data)
            wire.socket.shutdown(socket.SHUT_WR)
            assert ended(wire.socket)


def test_requests_in_one_piece_and_in_many_are_answered_in_order(home: Home, run: str) -> None:
    frames = b"".join(encode_frame(messages.encode(messages.Remaining(run=name))) for name in (run, "a", run, "b") * 25)
    with Wire(home.socket) as wire:
        for start in range(0, len(frames), 7):
            wire.socket.sendall(frames[start : start + 7])
        kinds = [type(messages.decode_answer(wire.receive())) for _ in range(100)]
    assert kinds == [messages.RemainingAnswer, messages.ErrorAnswer] * 50


def test_incomplete_frames_time_out_while_others_are_answered(home: Home, run: str) -> None:
    """Each slow sender gets an error after ten seconds."""
    with ExitStack() as stack:
        slow = [stack.enter_context(Wire(home.socket)) for _ in range(20)]
        for wire in slow:
            wire.socket.sendall(b"\0\x10\0\0half")
        before = time.monotonic()
        while time.monotonic() - before < 9:
            assert home.spend(run).spent == 1
            for wire in slow:
                wire.socket.sendall(b"x")  # more bytes do not extend the time limit
        for wire in slow:
            assert wire.error() == "timeout"
            assert ended(wire.socket)


@pytest.fixture
def descriptors() -> Iterator[int]:
    """Let this process open as many files as its hard limit allows; yield that limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = before[1] if before[1] != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, before[1]))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def require_limit(home: Home, run: str, limit: int) -> None:
    """Require that so many connections stay open, and that the longest idle one is closed for each further one."""
    with ExitStack() as stack:
        wires = []
        for _ in range(limit + 76):
            wires.append(stack.enter_context(Wire(home.socket)))
            assert isinstance(wires[-1].ask(messages.Ping()), messages.PingAnswer)
        for wire in wires[:76]:
            assert ended(wire.socket)
        hook = messages.Hook(input=b'{"hook_event_name": "UserPromptSubmit", "session_id": "s1"}')
        assert isinstance(home.ask(hook), messages.HookAnswer)
        assert ended(wires[76].socket)
        assert home.ok("remaining", "--run", run) == str(250_000 - 1)
        assert isinstance(wires[-1].ask(messages.Remaining(run=run)), messages.RemainingAnswer)


def test_idle_connections_make_room(home: Home, run: str, daemon: Daemon, descriptors: int) -> None:
    """1 024 connections are served, if the limit of open files allows it."""
    require_limit(home, run, min(1024, descriptors - 256))
    assert daemon.status("VmRSS") < 100_000


def test_few_open_files_mean_fewer_connections(home: Home, interstat: Interstat) -> None:
    """The daemon reserves descriptors for its own files, so that numbers stay fresh."""
    home.start(prefix=("prlimit", "--nofile=200"))
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=1, output_tokens=0)
    require_limit(home, run, 100)


def test_no_connection_in_use_is_closed_for_another(home: Home, interstat: Interstat) -> None:
    """If none is idle, a further one gets `busy`, until some are closed."""
    home.start(prefix=("prlimit", "--nofile=200"))
    run = started(home, session="s1")
    with ExitStack() as stack:
        streams = [stack.enter_context(Wire(home.socket)) for _ in range(100)]
        for wire in streams:
            assert isinstance(wire.ask(messages.Subscribe()), messages.SubscribedAnswer)
        for _ in range(76):
            with Wire(home.socket) as refused:
                assert refused.error() == "busy"
                assert ended(refused.socket)
        result = home.ctl("remaining", "--run", run)
        assert (result.returncode, result.stdout) == (69, "")
        for wire in streams[:10]:
            wire.socket.close()
        wait_for(lambda: home.ctl("remaining", "--run", run).returncode == 0, "the closed streams to make room")


def test_connection_whose_request_has_arrived_is_not_closed_for_another(tmp_path: Path) -> None:
    async def body() -> None:
        with socket.socket(socket.AF_UNIX) as listening, ExitStack() as stack:
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            listening.setblocking(False)
            server = Server(lambda _request, _pid: PONG, Limits(connections=2))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(server.serve, listening)
                first, second = (stack.enter_context(Wire(tmp_path / "s")) for _ in range(2))
                while len(server.idle) < 2:
                    await anyio.lowlevel.checkpoint()
                # The server's loop does not run in between.
                first.socket.sendall(encode_frame(messages.encode(messages.Ping())))
                third = stack.enter_context(Wire(tmp_path / "s"))
                server.stop_accepting(leave_queue=False)
                assert await anyio.to_thread.run_sync(third.ask, messages.Ping()) == PONG
                assert messages.decode_answer(await anyio.to_thread.run_sync(first.receive)) == PONG
                assert await anyio.to_thread.run_sync(ended, second.socket)
                tasks.cancel_scope.cancel()

    anyio.run(body)


def test_many_invalid_requests_are_answered_and_not_logged(home: Home, run: str, daemon: Daemon) -> None:
    """Other clients are answered meanwhile."""
    invalid = (b"\xc1", b"\x81\xa2op\xa3\xff\xfe\xfd", msgspec.msgpack.encode({"v": 1, "op": "no-such-thing"}))
    frames = b"".join(map(encode_frame, invalid)) * 20
    lines = len(daemon.log.splitlines())

    def send() -> None:
        for _ in range(25):
            with Wire(home.socket) as wire:
                wire.socket.sendall(frames + b"\0\0\0\0")
                assert ended(wire.socket)

    with ThreadPoolExecutor(4) as threads:
        sending = [threads.submit(send) for _ in range(4)]
        while not all(future.done() for future in sending):
            assert home.spend(run).spent == 1
        for future in sending:
            future.result()
    assert len(daemon.log.splitlines()) < lines + 10


def test_defect_in_every_request_is_logged_a_few_times(tmp_path: Path) -> None:
    def fail(_request: messages.AnyRequest, _pid: int) -> NoReturn:
        raise ValueError("a defect")

    responder = Responder(fail, Limits(), ByteCount(Limits()))
    request = messages.encode(messages.Ping())
    with capture_logs() as lines:
        for _ in range(1000):
            assert isinstance(responder.respond(request, os.getpid()), bytes)
    assert [line["event"] for line in lines] == ["request failed"]


def test_client_that_never_reads(home: Home, run: str, daemon: Daemon) -> None:
    """Its connection is closed, and the daemon's memory does not grow."""
    frame = encode_frame(messages.encode(messages.RunShow(run=run)))
    before = daemon.status("VmRSS")
    with ExitStack() as stack:
        deaf = [stack.enter_context(closing(socket.socket(socket.AF_UNIX))) for _ in range(5)]
        for peer in deaf:
            peer.connect(str(home.socket))
            peer.settimeout(0.2)
            try:
                for _ in range(100_000):
                    peer.sendall(frame * 50)
            except (TimeoutError, BrokenPipeError, ConnectionResetError):
                continue
        assert home.spend(run).spent == 1
        assert daemon.status("VmRSS") - before < 20_000


def test_memory_for_incomplete_frames_is_bounded(home: Home, run: str, daemon: Daemon) -> None:
    """300 clients begin a frame of one MiB; small requests are still answered."""
    piece = (MAX_FRAME).to_bytes(4, "big") + os.urandom(900_000)
    before = daemon.status("VmRSS")

    def send(wire: Wire) -> None:
        wire.socket.settimeout(5)
        try:
            wire.socket.sendall(piece)
        except OSError:
            return

    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(home.socket)) for _ in range(300)]
        threads = [threading.Thread(target=send, args=(wire,)) for wire in wires]
        for thread in threads:
            thread.start()
        peak = 0
        while any(thread.is_alive() for thread in threads):
            assert home.spend(run).spent == 1
            peak = max(peak, daemon.status("VmRSS") - before)
        for thread in threads:
            thread.join()
        assert peak < 100_000, peak  # kB; the frames have 270 MB


def test_out_of_descriptors(home: Home, interstat: Interstat) -> None:
    """Idle clients make room for new ones."""
    daemon = home.start(prefix=("prlimit", "--nofile=60:60"))
    name = started(home, session="s1")
    with ExitStack() as stack:
        wires = []
        for _ in range(80):
            peer = stack.enter_context(closing(socket.socket(socket.AF_UNIX)))
            peer.connect(str(home.socket))
            wires.append(peer)
        last = wires[-1]
        last.settimeout(PATIENCE)
        last.sendall(encode_frame(messages.encode(messages.Ping())))
        assert last.recv(65536)
    assert home.spend(name).spent == 0
    assert daemon.process.poll() is None
