"""Requests that arrive together share one check of the sources, and no answer misses what was written before it."""

import fcntl
import struct
import termios
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest

from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.server.server import Server
from fluxbudgetd.totals import Standing
from fluxbudgetd.totals.turn import Turn
from fluxbudgetd.wire import messages
from harness.daemon import PATIENCE, Wire
from harness.server import served
from harness.service import service_over, within
from harness.transcripts import Transcript

RUNS = ("r1", "r2", "r3")
PONG = messages.PingAnswer(version="", protocol=1, pid=1, started_at="")


class Counted:
    """A function, and how often it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self._function(*arguments, **options)


def unread_bytes(wire: Wire) -> int:
    """Return how many of the bytes that were sent have not been received yet."""
    return int(struct.unpack("i", fcntl.ioctl(wire.socket, termios.TIOCOUTQ, bytes(4)))[0])


async def connected(server: Server, path: Path, stack: ExitStack, count: int) -> list[Wire]:
    """Return connections that the server has accepted, and that wait for their first request."""
    wires = [stack.enter_context(Wire(path)) for _ in range(count)]
    while len(server.idle) < count:
        await anyio.lowlevel.checkpoint()
    return wires


async def answers(wires: list[Wire]) -> list[messages.AnyAnswer | messages.ErrorAnswer]:
    return [messages.decode_answer(await anyio.to_thread.run_sync(wire.receive)) for wire in wires]


def test_question_is_first_once_in_each_block() -> None:
    turn = Turn()
    assert [turn.is_first("a"), turn.is_first("a")] == [True, True]
    for _ in range(2):
        with turn:
            assert [turn.is_first(question) for question in "abab"] == [True, True, False, False]
    assert [turn.is_first("a"), turn.is_first("a")] == [True, True]


def test_block_that_fails_leaves_nothing_behind() -> None:
    def fail() -> None:
        turn.is_first("a")
        raise ValueError("a defect")

    turn = Turn()
    with pytest.raises(ValueError, match="a defect"), turn:
        fail()
    assert [turn.is_first("a"), turn.is_first("a")] == [True, True]


def test_requests_that_arrive_together_are_all_received_before_one_is_handled(tmp_path: Path) -> None:
    """They are handled in one block. It ends before the next requests are received."""
    wires: list[Wire] = []
    log: list[object] = []

    class LoggedTurn:
        def __enter__(self) -> None:
            log.append([unread_bytes(wire) for wire in wires])

        def __exit__(self, *_exception: object) -> None:
            log.append("end")

    def handler(request: messages.AnyRequest, _pid: int) -> messages.PingAnswer:
        log.append(request.wait_ms)
        return PONG

    async def body() -> None:
        with ExitStack() as stack:
            async with served(tmp_path / "s", handler, turn=LoggedTurn()) as server:
                wires.extend(await connected(server, tmp_path / "s", stack, 3))
                for first in (1, 4):
                    for number, wire in enumerate(wires, first):
                        wire.send(messages.Ping(wait_ms=number))
                    await answers(wires)

    anyio.run(body)
    assert log == [[0, 0, 0], 1, 2, 3, "end", [0, 0, 0], 4, 5, 6, "end"]


def test_program_that_always_has_a_next_request_does_not_keep_other_tasks_from_running(tmp_path: Path) -> None:
    most = 100
    wires: list[Wire] = []
    handled = 0

    def handler(_request: messages.AnyRequest, _pid: int) -> messages.PingAnswer:
        nonlocal handled
        handled += 1
        if handled < most:
            wires[handled % 2].send(messages.Ping())
        return PONG

    async def body() -> list[int]:
        seen = [0]
        with ExitStack() as stack:
            async with served(tmp_path / "s", handler) as server:
                wires.extend(await connected(server, tmp_path / "s", stack, 2))
                wires[0].send(messages.Ping())
                while handled < most:
                    await anyio.lowlevel.checkpoint()
                    seen.append(handled)
        return seen

    seen = anyio.run(body)
    assert max(after - before for before, after in pairwise(seen)) < most / 2


def test_questions_that_arrive_together_miss_nothing(tmp_path: Path) -> None:
    """An answer includes what was written before its request, whichever runs the other requests are about."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            context = Context(service=service, state_dir="", started_at=0, connections=lambda: 0)
            transcripts = [Transcript(tmp_path, run) for run in RUNS]
            for run in RUNS:
                start = messages.RunStart(id=run, project_dir="/p", session=run, token_budget=1000)
                await service.lifecycle.start(start, within(PATIENCE))
            path = tmp_path / "s"
            async with served(
                path, lambda request, pid: handle(context, request, pid), turn=service.totals.turn
            ) as server:
                with ExitStack() as stack:
                    wires = await connected(server, path, stack, len(RUNS))
                    for spent in range(1, 30):
                        for run, wire, transcript in zip(RUNS, wires, transcripts, strict=True):
                            transcript.response(f"m{spent}", request=None, tokens=(1, 0, 0, 0))
                            wire.send(messages.Remaining(run=run, wait_ms=60_000))
                        for answer in await answers(wires):
                            assert isinstance(answer, messages.RemainingAnswer), answer
                            assert (answer.spend.spent, answer.spend.stale_why) == (spent, None)

    anyio.run(body)


def test_sources_are_looked_at_once_in_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            for run in RUNS:
                start = messages.RunStart(id=run, project_dir="/p", session=run)
                await service.lifecycle.start(start, within(PATIENCE))
            epochs, compared = Counted(service.totals.interstat.epoch), Counted(service.totals.transcripts.changed)
            monkeypatch.setattr(service.totals.interstat, "epoch", epochs)
            monkeypatch.setattr(service.totals.transcripts, "changed", compared)
            with service.totals.turn:
                for run in RUNS * 2:
                    service.totals.standing_now(run, None, None, messages.Hints())
                    service.totals.standing_now(
                        None, None, None, messages.Hints(sessions=("unknown",), cwd="/p", run=run)
                    )
            assert (epochs.calls, compared.calls) == (1, len(RUNS))

    anyio.run(body)


def test_standing_is_found_once_in_a_block_unless_the_run_changes(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            start = messages.RunStart(id="r1", project_dir="/p", session="r1", token_budget=1000)
            await service.lifecycle.start(start, within(PATIENCE))
            account, totals = service.accounts.runs["r1"], service.totals

            def standing() -> Standing | None:
                return totals.standing_now("r1", None, None, messages.Hints())

            # The start has the run refreshed in the background; until then, an answer takes waiting.
            with anyio.fail_after(PATIENCE):
                while standing() is None:
                    await totals.standing(account, within(PATIENCE))
            with totals.turn:
                first = standing()
                assert first is not None
                assert standing() is first
                account.reserved = 100
                changed = standing()
                assert changed is not None
                assert changed.balance.reserved == 100
                account.run = msgspec.structs.replace(account.run, goal="another")
                changed = standing()
                assert changed is not None
                assert changed.run.goal == "another"
            assert standing() is not standing()

    anyio.run(body)
