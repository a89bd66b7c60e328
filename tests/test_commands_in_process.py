"""Command lines, with the service inside the test: answers given at once, and answers that come too late."""

import json
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.errors import RequestTimeoutError
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.server.requests import MoreInput, TrackedAnswer
from fluxbudgetd.wire import messages
from harness.commands import Outcome, carried_out
from harness.hooks import launch_input
from harness.interstat import Interstat
from harness.service import HangingSource, service_over, within

FIRST_READ = (
    "fluxbudgetctl: the numbers of run r1 are being read for the first time since fluxbudgetd started\n"
    "hint: ask again, or give more --timeout\n"
)


@asynccontextmanager
async def serving_a_run(root: Path) -> AsyncIterator[tuple[Context, HangingSource]]:
    """Serve a run with a session whose numbers are not read yet."""
    interstat = Interstat(root / "metrics.db")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    interstat.close()
    start = messages.RunStart(id="r1", project_dir="/p", session="s1", whole=True, token_budget=100_000)
    async with service_over(root) as (service, _source):
        run, *_ = await service.lifecycle.start(start, within(60))
        await service.totals.standing(service.accounts.runs[run.id], within(60))
    async with service_over(root, follows=False) as (service, source):
        yield Context(service=service, state_dir=str(root), started_at=0, connections=lambda: 0), source


def launch(call: str) -> bytes:
    """Return the input of the hook before a sub-agent's launch."""
    return json.dumps(
        {
            "session_id": "s1",
            "hook_event_name": "PreToolUse",
            "tool_name": "Agent",
            "tool_use_id": call,
            "tool_input": launch_input("fd-quality"),
        }
    ).encode()


def command(*words: bytes, wait_ms: int = 5000, stdin: bytes = b"", more: bool = False) -> messages.Command:
    return messages.Command(words=words, wait_ms=wait_ms, stdin=stdin, more=more, cwd=b"/p")


async def warmed_up(context: Context) -> None:
    """Wait until requests about the run are answered at once."""
    await answered(context, command(b"remaining"))
    with anyio.fail_after(30):
        while context.service.totals.standing_now("r1", None, None, messages.Hints()) is None:
            await answered(context, command(b"remaining"))


async def answered(context: Context, request: messages.Command) -> object:
    answer = handle(context, request, os.getpid())
    return await answer if isinstance(answer, Awaitable) else answer


@pytest.mark.parametrize(
    "request_",
    [
        command(b"remaining"),
        command(b"remaining", b"--json", b"--run", b"r1"),
        command(b"env"),
        command(b"check"),
        command(b"ping"),
        command(b"hook"),
        command(b"hook", stdin=b'{"session_id": "s1", "hook_event_name": "Notification"}', more=True),
        command(b"--help"),
    ],
    ids=lambda request: request.words[0].decode(),
)
def test_command_with_nothing_to_wait_for_is_answered_at_once(tmp_path: Path, request_: messages.Command) -> None:
    async def body() -> None:
        async with serving_a_run(tmp_path) as (context, _source):
            await warmed_up(context)
            assert isinstance(handle(context, request_, os.getpid()), messages.CommandAnswer)

    anyio.run(body)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((b"remaining",), Outcome(75, "", FIRST_READ)),
        ((b"remaining", b"--default", b"7"), Outcome(0, "7\n", FIRST_READ)),
        ((b"env",), Outcome(75, "", FIRST_READ)),
        ((b"check", b"--require"), Outcome(75, "", FIRST_READ)),
        ((b"statusline",), Outcome(75, "", FIRST_READ)),
    ],
    ids=lambda value: value[0].decode() if isinstance(value[0], bytes) else "",
)
def test_numbers_that_cannot_be_read_in_time(tmp_path: Path, words: tuple[bytes, ...], expected: Outcome) -> None:
    """`remaining` prints its default; the others fail."""

    async def body() -> None:
        async with serving_a_run(tmp_path) as (context, source):
            source.hang()
            assert carried_out(await answered(context, command(*words, wait_ms=0))) == expected
            source.resume()

    anyio.run(body)


def test_hook_that_fails_is_an_error_answer(tmp_path: Path) -> None:
    """The client decides whether a failure denies a launch."""

    async def body() -> None:
        async with serving_a_run(tmp_path) as (context, source):
            source.hang()
            with pytest.raises(RequestTimeoutError):
                await answered(context, command(b"hook", wait_ms=0, stdin=launch("t1")))
            source.resume()

    anyio.run(body)


def test_admission_whose_answer_is_not_delivered_is_withdrawn(tmp_path: Path) -> None:
    async def body() -> None:
        async with serving_a_run(tmp_path) as (context, _source):
            account = context.service.accounts.runs["r1"]
            for call, is_delivered, reserved in (("t1", False, 0), ("t2", True, 40_000)):
                answer = await answered(context, command(b"hook", stdin=launch(call)))
                assert isinstance(answer, TrackedAnswer)
                assert carried_out(answer.answer) == Outcome(0)
                assert account.balance().reserved == 40_000
                answer.on_delivered(is_delivered)
                assert account.balance().reserved == reserved

    anyio.run(body)


def test_wait_for_stdin_depends_on_the_verb_and_on_what_has_arrived(tmp_path: Path) -> None:
    """A status line needs no stdin, so it stops waiting early enough to be answered in time."""

    async def body() -> None:
        async with serving_a_run(tmp_path) as (context, _source):
            for verb, stdin, seconds in (
                (b"statusline", b"", 5.0),
                (b"statusline", b"{", 7.5),
                (b"hook", b"", 10.0),
                (b"hook", b"{", 10.0),
            ):
                begun = anyio.current_time()
                more = handle(context, command(verb, wait_ms=10_000, stdin=stdin, more=True), os.getpid())
                assert isinstance(more, MoreInput)
                assert begun + seconds <= more.deadline <= anyio.current_time() + seconds
                assert more.held == len(stdin)
            capped = handle(context, command(b"hook", wait_ms=3_600_000, more=True), os.getpid())
            assert isinstance(capped, MoreInput)
            assert capped.deadline <= anyio.current_time() + 20

    anyio.run(body)
