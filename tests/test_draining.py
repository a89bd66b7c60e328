"""A server that stops loses no request that was sent, and waits for no idle connection."""

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from fluxbudgetd.server.limits import Limits
from fluxbudgetd.server.requests import Handler, MoreInput
from fluxbudgetd.server.server import Server
from fluxbudgetd.wire import messages
from harness.daemon import Wire

#: The server waits for a new connection's first request longer than the test may take.
PATIENT = Limits(first_request_seconds=60)
PONG = messages.PingAnswer(version="1", protocol=1, pid=1, started_at="")


class Served:
    """A server at a real socket, which the test can stop."""

    def __init__(self, path: Path, limits: Limits, handler: Handler) -> None:
        self.path = path
        self.server = Server(handler, limits)
        self.drained = anyio.Event()

    async def connected(self, count: int = 1) -> Wire:
        """Return a connection that the server has accepted."""
        wire = await anyio.to_thread.run_sync(Wire, self.path)
        while self.server.connections < count:
            await anyio.lowlevel.checkpoint()
        return wire

    async def drain(self) -> None:
        self.server.stop_accepting()
        await self.server.drained()
        self.drained.set()


@asynccontextmanager
async def served(
    path: Path,
    limits: Limits = Limits(),  # noqa: B008  it is frozen
    handler: Handler = lambda _request, _pid: PONG,
) -> AsyncIterator[Served]:
    made = Served(path, limits, handler)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(made.server.serve, listening)
            yield made
            tasks.cancel_scope.cancel()


async def asked(wire: Wire) -> object:
    return await anyio.to_thread.run_sync(wire.ask, messages.Ping())


async def has_ended(wire: Wire) -> bool:
    with pytest.raises(EOFError):
        await anyio.to_thread.run_sync(wire.receive)
    return True


def test_new_connection_may_still_send_its_first_request(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path / "s", PATIENT) as it, anyio.create_task_group() as tasks:
            with await it.connected() as wire:
                tasks.start_soon(it.drain)
                await anyio.sleep(0.05)
                assert not it.drained.is_set()
                assert await asked(wire) == PONG
                with anyio.fail_after(30):
                    await it.drained.wait()
                assert await has_ended(wire)

    anyio.run(body)


def test_connection_without_a_request_does_not_delay_the_stop(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path / "s") as it:
            with await it.connected() as wire, anyio.fail_after(30):
                await it.drain()
                assert await has_ended(wire)

    anyio.run(body)


def test_idle_connection_is_closed_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with served(tmp_path / "s", PATIENT) as it:
            with await it.connected() as wire, anyio.fail_after(30):
                assert await asked(wire) == PONG
                await it.drain()
                assert await has_ended(wire)

    anyio.run(body)


def test_request_sent_before_the_stop_is_answered(tmp_path: Path) -> None:
    """The connection was answered before, and the server may not have read the request yet."""

    async def body() -> None:
        async with served(tmp_path / "s") as it:
            with await it.connected() as wire, anyio.fail_after(30):
                assert await asked(wire) == PONG
                answers: list[object] = []
                asking = threading.Thread(target=lambda: answers.extend(wire.ask(messages.Ping()) for _ in range(1)))
                while not it.server.idle:
                    await anyio.lowlevel.checkpoint()
                (raw,) = it.server.idle
                asking.start()
                # The server's loop does not run in between.
                while True:
                    try:
                        raw.recv(1, socket.MSG_PEEK)
                    except BlockingIOError:
                        continue
                    break
                await it.drain()
                await anyio.to_thread.run_sync(asking.join)
                assert answers == [PONG]

    anyio.run(body)


def test_command_that_waits_for_its_stdin_is_answered(tmp_path: Path) -> None:
    """This holds even on a connection that was answered before."""
    waiting = threading.Event()

    def handle(request: messages.AnyRequest, _pid: int) -> messages.AnyAnswer | MoreInput:
        if isinstance(request, messages.Ping):
            return PONG
        waiting.set()
        return MoreInput(anyio.current_time() + 60, 0, lambda part: PONG if part else messages.CommandAnswer())

    async def body() -> None:
        async with served(tmp_path / "s", handler=handle) as it, anyio.create_task_group() as tasks:
            with await it.connected() as wire, anyio.fail_after(30):
                assert await asked(wire) == PONG
                wire.send(messages.Command(words=(b"hook",), more=True))
                await anyio.to_thread.run_sync(waiting.wait)
                tasks.start_soon(it.drain)
                await anyio.sleep(0.05)
                assert not it.drained.is_set()
                wire.send(messages.Stdin(stdin=b"{}"))
                assert messages.decode_answer(await anyio.to_thread.run_sync(wire.receive)) == PONG
                assert await has_ended(wire)
                await it.drained.wait()

    anyio.run(body)


def test_connection_after_the_last_accepted_one_waits_for_the_next_server(tmp_path: Path) -> None:
    async def body() -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            listening.setblocking(False)
            first, second = Server(lambda _request, _pid: PONG), Server(lambda _request, _pid: PONG)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.serve, listening)
                await anyio.sleep(0.02)
                first.stop_accepting()
                await first.drained()
                with await anyio.to_thread.run_sync(Wire, tmp_path / "s") as wire, anyio.fail_after(30):
                    tasks.start_soon(second.serve, listening)
                    assert await asked(wire) == PONG
                assert first.connections == 0
                tasks.cancel_scope.cancel()

    anyio.run(body)
