"""From a commit to whoever is told of it, and what hooks cost."""

import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import Row, spread, timed, world
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
    """Commit one row that passes the warning, and wait for the event at a subscriber."""
    with world("push", base) as home:
        writer = Interstat(home.interstat)
        home.start()
        plain = sqlite3.connect(home.interstat, isolation_level=None)
        with harness.Wire(home.socket) as events, harness.Wire(home.socket) as wire:
            events.socket.sendall(encode_frame(messages.encode(messages.Subscribe())))
            times = []
            for number in range(rounds):
                run = harness.started(home, session=f"s{number}", token_budget=_BUDGET)
                time.sleep(0.3)  # the watch is at rest
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
        ordered = sorted(times)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000
        median = statistics.median(ordered) * 1000
        yield Row("commit → event at a subscriber, p99", f"{p99:.0f} ms (median {median:.0f})", "≤ 150 ms", p99 <= 150)


_TOOL = {"tool_input": {"command": "make"}, "tool_response": {"stdout": "x" * 10_000}}
_HOOKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("PostToolUse, 10 kB", {"hook_event_name": "PostToolUse", "tool_name": "Bash", **_TOOL}),
    ("PostToolBatch, no warning", {"hook_event_name": "PostToolBatch", **_TOOL}),
    ("UserPromptSubmit", {"hook_event_name": "UserPromptSubmit", "prompt": "go on"}),
    (
        "PreToolUse, Agent admitted and reserved",
        {"hook_event_name": "PreToolUse", "tool_name": "Agent", "tool_input": {"subagent_type": "fd-quality"}},
    ),
    ("SubagentStop", {"hook_event_name": "SubagentStop"}),
)


def hooks(base: Path, rounds: int) -> Iterator[Row]:
    """Ask as a hook does: the daemon's part alone, and the whole process beside a bare Python."""
    with world("hooks", base) as home:
        Interstat(home.interstat).close()
        home.start()
        harness.started(home, id="r", session="s", token_budget="none")
        with harness.Wire(home.socket) as wire:
            for name, fields in _HOOKS:
                given = json.dumps({"session_id": "s", "cwd": str(home.project), **fields}).encode()
                request = messages.Hook(input=given, wait_ms=5000)
                wire.ask(request)
                times = [timed(lambda: wire.ask(request)) for _ in range(rounds)]  # noqa: B023  used at once
                yield Row(f"hook, round trip: {name}", spread(times), "", None)
        given = json.dumps({"session_id": "s", "cwd": str(home.project), **dict(_HOOKS[0][1])}).encode()
        ours: list[float] = []
        bare: list[float] = []
        for _ in range(max(rounds // 10, 20)):
            for command, stdin, times in (
                ([*harness.CTL, "hook"], given, ours),
                ([sys.executable, "-I", "-S", "-c", "pass"], b"", bare),
            ):

                def run(command: list[str] = command, stdin: bytes = stdin) -> None:
                    subprocess.run(command, env=home.environ, input=stdin, capture_output=True, check=True)

                times.append(timed(run))
        ratio = statistics.median(ours) / statistics.median(bare)
        yield Row("hook, whole process, 10 kB ÷ python -I -S -c pass", f"{ratio:.2f}", "", None)
