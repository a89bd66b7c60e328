"""A connection moves between callbacks and tasks, and the client cannot tell."""

import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from fluxbudgetd.server.limits import Limits
from fluxbudgetd.server.requests import Handler, TrackedAnswer
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness.daemon import PATIENCE, Wire
from harness.server import served

#: Requests with an odd number are answered later.
ODD = 1


def numbered(number: int) -> bytes:
    return encode_frame(messages.encode(messages.Ping(wait_ms=number)))


def answer_to(request: messages.AnyRequest, _pid: int = 0, size: int = 0) -> messages.PingAnswer:
    """Return an answer that shows which request it belongs to."""
    return messages.PingAnswer(version="x" * size, protocol=1, pid=request.wait_ms, started_at="")


def now_or_later(
    request: messages.AnyRequest, _pid: int, size: int = 0
) -> messages.PingAnswer | Awaitable[messages.PingAnswer]:
    async def later() -> messages.PingAnswer:
        await anyio.lowlevel.checkpoint()
        return answer_to(request, size=size)

    return later() if request.wait_ms % 2 == ODD else answer_to(request, size=size)


def received(wire: Wire) -> int:
    """Return the number of the request that the next answer belongs to."""
    answer = messages.decode_answer(wire.receive())
    assert isinstance(answer, messages.PingAnswer), answer
    return answer.pid


def run(
    client: Callable[[Path], None], path: Path, handler: Handler = now_or_later, frame_seconds: float = 10.0
) -> None:
    """Serve while the client runs in a thread; require that all connections are closed at the end."""

    async def body() -> None:
        async with served(path, handler, Limits(frame_seconds=frame_seconds)) as server:
            await anyio.to_thread.run_sync(client, path)
            while server.connections:
                await anyio.lowlevel.checkpoint()

    anyio.run(body)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_answers_come_in_the_order_of_the_requests(tmp_path: Path, size: int) -> None:
    """Requests arrive in pieces of any size, and are answered at once or later."""
    numbers = [0, 1, 1, 2, 4, 3, 6, 8, 5, 7]

    def client(path: Path) -> None:
        data = b"".join(map(numbered, numbers))
        with Wire(path) as wire:
            for start in range(0, len(data), size):
                wire.socket.sendall(data[start : start + size])
            assert [received(wire) for _ in numbers] == numbers

    run(client, tmp_path / "s")


@pytest.mark.parametrize("first", [None, 2, 1])
def test_half_a_frame_after_an_answered_request_times_out(tmp_path: Path, first: int | None) -> None:
    """The time limit is the same as on a new connection."""

    def client(path: Path) -> None:
        with Wire(path) as wire:
            if first is not None:
                wire.socket.sendall(numbered(first))
                assert received(wire) == first
            wire.socket.sendall(numbered(2)[:-1])
            assert wire.error() == "timeout"
            with pytest.raises(EOFError):
                wire.receive()

    run(client, tmp_path / "s", frame_seconds=0.1)


def test_half_a_frame_after_a_whole_one_times_out(tmp_path: Path) -> None:
    def client(path: Path) -> None:
        with Wire(path) as wire:
            wire.socket.sendall(numbered(2) + numbered(4)[:3])
            assert received(wire) == 2
            assert wire.error() == "timeout"

    run(client, tmp_path / "s", frame_seconds=0.1)


def test_idle_connection_does_not_time_out(tmp_path: Path) -> None:
    def client(path: Path) -> None:
        with Wire(path) as idle:
            for number in (2, 1, 4):
                idle.socket.sendall(numbered(number))
                assert received(idle) == number
                with Wire(path) as other:
                    other.socket.sendall(numbered(2)[:1])
                    assert other.error() == "timeout"

    run(client, tmp_path / "s", frame_seconds=0.1)


def test_connection_with_many_requests_lets_others_take_their_turn(tmp_path: Path) -> None:
    handled: list[int] = []

    def handler(request: messages.AnyRequest, _pid: int) -> messages.PingAnswer:
        handled.append(request.wait_ms)
        return answer_to(request)

    async def body() -> None:
        async with served(tmp_path / "s", handler) as server:
            with ExitStack() as stack:
                chatty, other = (stack.enter_context(Wire(tmp_path / "s")) for _ in range(2))
                while server.connections < 2:
                    await anyio.lowlevel.checkpoint()
                # The server's loop does not run in between.
                chatty.socket.sendall(numbered(2) * 1000)
                other.socket.sendall(numbered(4))
                assert await anyio.to_thread.run_sync(received, other) == 4
                assert [await anyio.to_thread.run_sync(received, chatty) for _ in range(1000)] == [2] * 1000
                assert handled.index(4) < 10

    anyio.run(body)


def test_answers_that_do_not_fit_into_the_kernels_buffer(tmp_path: Path) -> None:
    """They are sent, complete and in order, as the peer reads, and further requests are answered."""
    size, count = 100_000, 50

    def client(path: Path) -> None:
        with Wire(path) as wire:
            for number in range(count):
                wire.socket.sendall(numbered(number))
            assert [received(wire) for _ in range(count)] == list(range(count))
            wire.socket.sendall(numbered(2))
            assert received(wire) == 2

    run(client, tmp_path / "s", partial(answer_to, size=size))


def test_delivery_is_reported(tmp_path: Path) -> None:
    delivered: list[bool] = []

    def handler(request: messages.AnyRequest, _pid: int) -> TrackedAnswer[messages.PingAnswer]:
        return TrackedAnswer(answer_to(request), delivered.append)

    def client(path: Path) -> None:
        with Wire(path) as wire:
            for number in range(3):
                wire.socket.sendall(numbered(number))
                assert received(wire) == number

    run(client, tmp_path / "s", handler)
    assert delivered == [True] * 3


@pytest.mark.parametrize("sent", [b"", numbered(2)[:3], numbered(2), numbered(1), numbered(1) * 3, numbered(2) * 3])
def test_peer_that_closes_early(tmp_path: Path, sent: bytes) -> None:
    """Its connection is closed, whatever its state."""

    def client(path: Path) -> None:
        for _ in range(20):
            with Wire(path) as wire:
                wire.socket.sendall(sent)

    run(client, tmp_path / "s")


def test_many_requests_at_once(tmp_path: Path) -> None:
    """100 idle connections get requests before any is answered, and some are closed. The others get their answers."""

    async def body() -> None:
        async with served(tmp_path / "s", now_or_later) as server:
            with ExitStack() as stack:
                wires = [stack.enter_context(Wire(tmp_path / "s")) for _ in range(100)]
                for wire in wires:
                    wire.socket.sendall(numbered(0))
                    await anyio.to_thread.run_sync(received, wire)
                for number, wire in enumerate(wires):  # the server runs only after all of them
                    wire.socket.sendall(numbered(number))
                for wire in wires[::7]:
                    wire.socket.close()
                for number, wire in enumerate(wires):
                    if number % 7:
                        assert await anyio.to_thread.run_sync(received, wire) == number
                left = len(wires) - len(wires[::7])
                with anyio.fail_after(PATIENCE):
                    while server.connections > left:  # noqa: ASYNC110  the server has no event for this
                        await anyio.sleep(0.01)
                assert server.connections == left

    anyio.run(body)


def test_random_clients(tmp_path: Path) -> None:
    """Requests come in random pieces with random pauses; clients that stay to the end get every answer in order."""

    def client(path: Path) -> None:
        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(random_client, path, seed) for seed in range(100)]:
                future.result()

    with capture_logs() as lines:
        run(client, tmp_path / "s", partial(now_or_later, size=5_000))
    assert lines == []


def random_client(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    numbers = [chance.randrange(10) for _ in range(chance.randrange(1, 40))]
    data = b"".join(map(numbered, numbers))
    leaves = chance.random() < 0.3
    end = chance.randrange(len(data)) if leaves else len(data)
    sent, answered = 0, 0
    with Wire(path) as wire:
        while sent < end:
            size = chance.choice((1, 3, 20, 1000))
            wire.socket.sendall(data[sent : min(sent + size, end)])
            sent = min(sent + size, end)
            if not leaves and chance.random() < 0.2 and answered < sent // len(numbered(0)):
                assert received(wire) == numbers[answered]
                answered += 1
        if not leaves:
            assert [received(wire) for _ in numbers[answered:]] == numbers[answered:]


def test_request_in_progress_is_answered_while_the_server_drains(tmp_path: Path) -> None:
    """Requests that the connection has sent after it are answered, too."""

    async def body() -> None:
        release = anyio.Event()

        async def later(request: messages.AnyRequest) -> messages.PingAnswer:
            await release.wait()
            return answer_to(request)

        def handler(request: messages.AnyRequest, _pid: int) -> messages.PingAnswer | Awaitable[messages.PingAnswer]:
            return later(request) if request.wait_ms % 2 == ODD else answer_to(request)

        async with served(tmp_path / "s", handler) as server, anyio.create_task_group() as tasks:
            with Wire(tmp_path / "s") as wire:
                wire.socket.sendall(numbered(1) + numbered(2) + numbered(3))
                while not server.connections:
                    await anyio.lowlevel.checkpoint()
                server.stop_accepting()
                tasks.start_soon(server.drained)
                await anyio.wait_all_tasks_blocked()
                release.set()
                assert [await anyio.to_thread.run_sync(received, wire) for _ in range(3)] == [1, 2, 3]
                with pytest.raises(EOFError):
                    await anyio.to_thread.run_sync(wire.receive)

    anyio.run(body)
