"""Hooks are called before the line that they report is written: they wait for it briefly, and read again later."""

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.server.requests import TrackedAnswer
from fluxbudgetd.service import Service
from fluxbudgetd.sources import watch
from fluxbudgetd.sources.transcripts import tail
from fluxbudgetd.totals import awaited_lines, later
from fluxbudgetd.wire import messages
from harness.service import service_over, until, within
from harness.transcripts import Transcript, assistant_line, encoded

CALL = "toolu_01"


def tool_line(call: str = CALL, text: str = "") -> bytes:
    """Return a line with a tool call."""
    content = [{"type": "text", "text": text}, {"type": "tool_use", "id": call, "name": "Agent", "input": {}}]
    return encoded({"type": "assistant", "message": {"stop_reason": "tool_use", "content": content}})


FINAL = encoded({"type": "assistant", "message": {"stop_reason": "end_turn", "content": []}})
RESULT = encoded({"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": CALL}]}})
OTHER = encoded({"type": "attachment", "message": "odd"})

# --- what the end of a file shows


def test_call_is_found_in_complete_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(tool_line("toolu_02") + tool_line()[:-1])
    assert tail.has_call(str(path), "toolu_02")
    assert not tail.has_call(str(path), CALL)
    path.write_bytes(tool_line("toolu_02") + tool_line() + OTHER * 1_000)
    assert tail.has_call(str(path), CALL)


@pytest.mark.parametrize(
    ("lines", "is_final"),
    [
        (FINAL, True), (FINAL + OTHER + b"not JSON\n", True), (FINAL[:-1], False), (tool_line(), False),
        (FINAL + RESULT, False), (RESULT + FINAL, True), (b"", False), (OTHER, False),
        (b'{"type":"assistant","message":{"stop_reason":null}}\n', False),
        (tool_line(text="x" * 300_000) + FINAL, True),
    ],
)  # fmt: skip
def test_last_message_is_final(tmp_path: Path, lines: bytes, is_final: bool) -> None:
    path = tmp_path / "agent-a1.jsonl"
    path.write_bytes(lines)
    assert tail.has_final_message(str(path)) == is_final


# --- waiting


@asynccontextmanager
async def waiting(wait: Callable[[], Awaitable[None]]) -> AsyncIterator[anyio.Event]:
    """Wait in the background; yield the event that is set when that is over. At the end, wait for it."""
    over = anyio.Event()

    async def run() -> None:
        await wait()
        over.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield over


async def session_with_transcripts(service: Service, directory: Path, token_budget: int = 100) -> Transcript:
    """Start a hard run with a session whose transcripts, and those of its sub-agent a1, were read."""
    asked = messages.RunStart(project_dir="/p", id="r", session="s1", token_budget=token_budget, enforcement="hard")
    await service.lifecycle.start(asked, within(60))
    writer = Transcript(directory, "s1")
    writer.response("m1", tokens=(1, 0, 0, 0))
    writer.agent("a1").line(RESULT)
    await service.totals.standing(service.accounts.runs["r"], within(60))
    return writer


def test_hook_waits_for_the_line_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch waits for its call, in the main loop's transcript or in its sub-agent's; an end for the last message."""
    monkeypatch.setattr(awaited_lines, "LONGEST_SECONDS", 60.0)

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            writer = await session_with_transcripts(service, tmp_path)
            lines = service.totals.awaited_lines
            cases: list[tuple[Callable[[], Awaitable[None]], Transcript, bytes]] = [
                (lambda: lines.call("s1", None, CALL, within(60)), writer, tool_line()),
                (lambda: lines.call("s1", "a1", "toolu_03", within(60)), writer.agent("a1"), tool_line("toolu_03")),
                (lambda: lines.end("s1", "a1", within(60)), writer.agent("a1"), FINAL),
            ]
            for wait, file, line in cases:
                async with waiting(wait) as over:
                    file.line(line[:-1])
                    await anyio.wait_all_tasks_blocked()
                    assert not over.is_set()
                    file.line(line[-1:])
                    await over.wait()
                await wait()  # the line is there now

    anyio.run(body)


def test_hook_does_not_wait_without_a_transcript_nor_after_its_deadline(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            await session_with_transcripts(service, tmp_path)
            lines = service.totals.awaited_lines
            with anyio.fail_after(30):
                await lines.call("s2", None, CALL, within(60))
                await lines.call("s1", "a2", CALL, within(60))
                await lines.call("s1", None, CALL, within(-1))
                await lines.call("s1", None, CALL, within(60))  # 0.1 s

    anyio.run(body)


def hook(event: str, **fields: object) -> messages.Hook:
    """Return the request of a hook of session s1."""
    raw = json.dumps({"session_id": "s1", "hook_event_name": event, **fields}).encode()
    return messages.Hook(input=raw, hints=messages.Hints(cwd="/p"), wait_ms=20_000)


async def answered(service: Service, request: messages.Hook) -> str:
    """Return the daemon's answer to a hook."""
    context = Context(service=service, state_dir="", started_at=0, connections=lambda: 0)
    answer = handle(context, request, 0)
    if isinstance(answer, Awaitable):
        answer = await answer
    answer = answer.answer if isinstance(answer, TrackedAnswer) else answer
    assert isinstance(answer, messages.HookAnswer), answer
    return answer.output


@pytest.mark.parametrize("parent", [None, "a1"])
def test_launch_counts_the_response_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: str | None
) -> None:
    """Without that response, the sub-agent would fit."""
    monkeypatch.setattr(awaited_lines, "LONGEST_SECONDS", 60.0)
    has_call = tail.has_call
    has_looked = threading.Event()

    def noted(path: str, call: str) -> bool:
        has_looked.set()
        return has_call(path, call)

    monkeypatch.setattr(tail, "has_call", noted)
    answers = []

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            main = await session_with_transcripts(service, tmp_path, token_budget=40_010)
            inside = {} if parent is None else {"agent_id": parent, "agent_type": "Explore"}
            launch = hook("PreToolUse", tool_name="Agent", tool_use_id="toolu_09", tool_input={}, **inside)

            async def ask() -> None:
                answers.append(await answered(service, launch))

            async with waiting(ask):
                await until(has_looked.is_set)
                writer = main if parent is None else main.agent(parent)
                writer.response("m2", tokens=(10, 0, 0, 0), text="toolu_09")

    anyio.run(body)
    assert ["deny" in answer for answer in answers] == [True]


def test_end_of_a_sub_agent_counts_its_last_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then its estimate stays reserved."""
    monkeypatch.setattr(awaited_lines, "LONGEST_SECONDS", 60.0)
    sub_agent = {"agent_id": "a1", "agent_type": "Explore"}

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            main = await session_with_transcripts(service, tmp_path, token_budget=100_000)
            account = service.accounts.runs["r"]
            await answered(service, hook("SubagentStart", **sub_agent))
            assert account.reserved == 40_000

            async def stop() -> None:
                assert await answered(service, hook("SubagentStop", **sub_agent)) == ""

            async with waiting(stop):
                await anyio.wait_all_tasks_blocked()
                assert account.reserved == 40_000
                line = assistant_line("s1", "m2", tokens=(500, 0, 0, 0), sidechain=True)
                line["message"]["stop_reason"] = "end_turn"
                main.agent("a1").line(encoded(line))
            assert (account.balance().spent, account.reserved) == (501, 0)

    anyio.run(body)


# --- later


def test_requested_run_is_refreshed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run once, however often it is requested; a failure does not affect the next."""
    monkeypatch.setattr(later, "DELAY_SECONDS", 0.01)
    refreshed: list[str] = []

    async def refresh(run: str) -> None:
        refreshed.append(run)
        if run == "r1":
            raise ValueError(run)

    async def body() -> None:
        refreshes = later.LaterRefreshes(refresh)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refreshes.serve)
            for run in ("r1", "r2", "r1", "r2"):
                refreshes.request(run)
            await until(lambda: len(refreshed) == 2)
            refreshes.request("r2")
            await until(lambda: len(refreshed) == 3)
            tasks.cancel_scope.cancel()

    anyio.run(body)
    assert refreshed == ["r1", "r2", "r2"]


def test_line_that_is_written_after_a_hook_is_counted_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file event is needed either."""

    async def no_changes(*_: object) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    monkeypatch.setattr(watch, "changes", no_changes)

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            writer = await session_with_transcripts(service, tmp_path)
            service.totals.request_later_refresh("s1")
            writer.response("m2", tokens=(41, 0, 0, 0))
            await until(lambda: service.accounts.runs["r"].balance().spent == 42)

    anyio.run(body)
