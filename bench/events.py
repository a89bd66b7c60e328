"""How long an event takes from the commit to a subscriber, and what hooks cost the daemon."""

import json
import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from common import Row, p99, spread, timed, world
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame
from harness import daemon as harness
from harness.interstat import Interstat

_ROW = (
    "INSERT INTO agent_runs(timestamp, session_id, agent_name, input_tokens, output_tokens)"
    " VALUES ('2026-01-01T00:00:00Z', ?, 'x', ?, 0)"
)
_BUDGET = 1_000_000


def push(base: Path, rounds: int) -> Iterator[Row]:
    """Commit one row that passes the warning threshold, and wait until a subscriber gets the event."""
    with world("push", base) as home:
        writer = Interstat(home.interstat)
        home.start()
        plain = sqlite3.connect(home.interstat, isolation_level=None)
        with harness.Wire(home.socket) as events, harness.Wire(home.socket) as wire:
            events.socket.sendall(encode_frame(messages.encode(messages.Subscribe())))
            times = []
            for number in range(rounds):
                run = harness.started(home, session=f"s{number}", whole=True, token_budget=_BUDGET)
                time.sleep(0.3)  # the watcher is idle again
                before = time.perf_counter()
                plain.execute(_ROW, (f"s{number}", _BUDGET * 9 // 10))
                while True:
                    answer = messages.decode_answer(events.receive())
                    if isinstance(answer, messages.EventAnswer) and answer.kind == "budget.warning":
                        times.append(time.perf_counter() - before)
                        break
                wire.ask(messages.RunCancel(run=run, wait_ms=5000))
        plain.close()
        writer.close()
        slowest, median = p99(times) * 1000, statistics.median(times) * 1000
        figure = f"{slowest:.0f} ms (median {median:.0f})"
        yield Row("commit → event at a subscriber, p99", figure, "≤ 150 ms", slowest <= 150)


_TOOL = {"tool_input": {"command": "make"}, "tool_response": {"stdout": "x" * 10_000}}
HOOKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("PostToolUse, 10 kB", {"hook_event_name": "PostToolUse", "tool_name": "Bash", **_TOOL}),
    ("PostToolBatch, no warning", {"hook_event_name": "PostToolBatch", **_TOOL}),
    ("UserPromptSubmit", {"hook_event_name": "UserPromptSubmit", "prompt": "go on"}),
    (
        "PreToolUse, Agent admitted and reserved",
        {"hook_event_name": "PreToolUse", "tool_name": "Agent", "tool_input": {"subagent_type": "fd-quality"}},
    ),
    ("SubagentStop", {"hook_event_name": "SubagentStop"}),
)


#: The session of the hooks.
SESSION = "s"


def hook_input(home: harness.Home, fields: dict[str, object]) -> bytes:
    """Return the input that Claude Code gives a hook."""
    return json.dumps({"session_id": SESSION, "cwd": str(home.project), **fields}).encode()


def hooks(base: Path, rounds: int) -> Iterator[Row]:
    """Measure the daemon's share of a hook: requests without a client process."""
    with world("hooks", base) as home:
        Interstat(home.interstat).close()
        home.start()
        harness.started(home, id="r", session=SESSION, token_budget="none")
        with harness.Wire(home.socket) as wire:
            for name, fields in HOOKS:
                request = messages.Hook(input=hook_input(home, fields), wait_ms=5000)
                wire.ask(request)
                times = [timed(lambda: wire.ask(request)) for _ in range(rounds)]  # noqa: B023  used at once
                yield Row(f"hook, round trip: {name}", spread(times), "", None)
