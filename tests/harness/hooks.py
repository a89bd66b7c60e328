"""Claude Code's side of hooks: the input that it sends, and how it reads the output."""

import json
import sqlite3
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fluxbudgetd.wire import messages
from harness.daemon import CTL, Home
from harness.transcripts import Transcript

#: Claude Code cuts longer strings.
_LONGEST = 10_000
_CONTEXT_EVENTS = ("SessionStart", "UserPromptSubmit", "PreToolUse", "SubagentStart", "PostToolUse", "PostToolBatch")
_DECISIONS = ("allow", "deny", "ask")


class HookOutput(NamedTuple):
    """What a hook's output tells Claude Code."""

    context: str = ""
    """For the model."""
    message: str = ""
    """For the user."""
    decision: str = ""
    """`allow`, `deny` or `ask` about a tool call; `block` for a prompt."""
    reason: str = ""
    stop: str = ""
    """Why the turn, or the sub-agent, is ended."""


SILENT = HookOutput()


def parse_output(event: str, output: str) -> HookOutput:
    """Parse the output of an event's hook; fail unless it is one line in the format of that event."""
    if not output:
        return SILENT
    assert output.removesuffix("\n").splitlines() == [output.removesuffix("\n")], output
    found = json.loads(output)
    outer = {"UserPromptSubmit": {"decision", "reason"}, "PostToolBatch": {"continue", "stopReason"}}
    assert found.keys() <= {"systemMessage", "hookSpecificOutput", *outer.get(event, ())}, found
    assert found.get("decision", "block") == "block"
    assert found.get("continue", False) is False
    inner = found.get("hookSpecificOutput", {"hookEventName": event})
    assert inner["hookEventName"] == event, found
    allowed = {"hookEventName"}
    if event in _CONTEXT_EVENTS:
        allowed |= {"additionalContext"}
    if event == "PreToolUse":
        allowed |= {"permissionDecision", "permissionDecisionReason"}
        assert inner.get("permissionDecision", "ask") in _DECISIONS, found
    assert inner.keys() <= allowed, found
    parsed = HookOutput(
        inner.get("additionalContext", ""),
        found.get("systemMessage", ""),
        inner.get("permissionDecision", "") or found.get("decision", ""),
        inner.get("permissionDecisionReason", "") or found.get("reason", ""),
        found.get("stopReason", ""),
    )
    for text in parsed:
        assert isinstance(text, str)
        assert len(text) <= _LONGEST
        assert text.isprintable() or not text, text
    return parsed


class Claude:
    """A Claude Code session that calls its hooks, by default in the project's directory."""

    def __init__(self, home: Home, session: str = "s1", *, cwd: Path | None = None) -> None:
        self.home = home
        self.session = session
        self.cwd = cwd or home.project
        self.permission_mode = "default"
        #: True if Claude Code says that a person is there.
        self.is_attended = False
        self.transcript = home.root / "claude" / "projects" / "-home-me-work" / f"{session}.jsonl"

    def hook_input(self, event: str, **fields: Any) -> dict[str, Any]:
        """Return the input of an event's hook."""
        return {
            "session_id": self.session,
            "transcript_path": str(self.transcript),
            "cwd": str(self.cwd),
            "permission_mode": self.permission_mode,
            "hook_event_name": event,
            **fields,
        }

    def call(self, event: str, *, hints: messages.Hints | None = None, **fields: Any) -> HookOutput:
        """Send an event's hook to the daemon, without a client process; return the parsed output."""
        raw = json.dumps(self.hook_input(event, **fields)).encode()
        return parse_output(event, self.answer(raw, hints=hints).output)

    def answer(self, raw: bytes, *, whole: bool = True, hints: messages.Hints | None = None) -> messages.HookAnswer:
        """Return the daemon's answer to a hook's raw input."""
        asked = hints or messages.Hints(cwd=str(self.cwd))
        request = messages.Hook(input=raw, whole=whole, hints=asked, attended=self.is_attended, wait_ms=30_000)
        answer = self.home.ask(request, 30.0)
        assert isinstance(answer, messages.HookAnswer), answer
        return answer

    def run(self, event: str, *, environ: Mapping[str, str] | None = None, **fields: Any) -> HookOutput:
        """Run an event's hook as a process, with a long timeout."""
        return parse_output(event, self.run_raw(json.dumps(self.hook_input(event, **fields)).encode(), environ=environ))

    def run_raw(self, raw: bytes, *, environ: Mapping[str, str] | None = None, seconds: str = "20") -> str:
        """Run the hook with this input; return its stdout. Fail unless it exits with 0 and an empty stderr."""
        result = subprocess.run(
            [*CTL, "hook", "--timeout", seconds],
            env={**self.home.environ, **(environ or {})},
            cwd=self.cwd,
            input=raw,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, b""), result
        return result.stdout.decode()

    def launch(
        self,
        agent: str | None = "fd-quality",
        tool: str = "Agent",
        *,
        call: str | None = None,
        parent: str | None = None,
        **tool_input: Any,
    ) -> HookOutput:
        """Call the hook that precedes the launch of a sub-agent, by the main loop or by the sub-agent `parent`."""
        ids = {"tool_use_id": call, **_inside(parent)}
        return self.call("PreToolUse", tool_name=tool, tool_input={**launch_input(agent), **tool_input}, **ids)

    def message(self, agent_id: str, *, call: str | None = None) -> HookOutput:
        """Call the hook that precedes a message to a sub-agent."""
        tool_input = {"to": agent_id, "summary": "More", "message": "Go on."}
        return self.call("PreToolUse", tool_name="SendMessage", tool_input=tool_input, tool_use_id=call)

    def starts(self, agent_id: str | None, agent: str = "fd-quality") -> HookOutput:
        return self.call("SubagentStart", **_subagent(agent_id, agent))

    def stops(self, agent_id: str | None, agent: str = "fd-quality") -> HookOutput:
        return self.call("SubagentStop", stop_hook_active=False, **_subagent(agent_id, agent))

    def fails(self, agent_id: str | None = None, agent: str = "fd-quality") -> HookOutput:
        """End a sub-agent, or the main loop's turn, by an error of the API."""
        return self.call("StopFailure", error="server_error", **_inside(agent_id, agent))

    def batch(self, *calls: str, agent_id: str | None = None, agent: str = "fd-quality") -> HookOutput:
        """Call the hook that follows a batch of tool calls, in the main loop or inside a sub-agent."""
        listed = [{"tool_name": "Agent", "tool_use_id": call, "tool_response": "…"} for call in calls]
        return self.call("PostToolBatch", tool_calls=listed, **_inside(agent_id, agent))

    def ends_turn(self, *background: str) -> HookOutput:
        """End the main loop's turn while these tasks go on."""
        tasks = [{"id": task, "type": "subagent", "status": "running"} for task in background]
        return self.call("Stop", stop_hook_active=False, background_tasks=tasks)


def launch_input(agent: str | None) -> dict[str, str]:
    """Return the input of the tool that launches a sub-agent; None leaves out its type."""
    named = {} if agent is None else {"subagent_type": agent}
    return {"description": "look at it", "prompt": "Look at it.", **named}


def _subagent(agent_id: str | None, agent: str) -> dict[str, Any]:
    return {"agent_type": agent} if agent_id is None else {"agent_id": agent_id, "agent_type": agent}


def _inside(agent_id: str | None, agent: str = "fd-quality") -> dict[str, Any]:
    return {} if agent_id is None else _subagent(agent_id, agent)


#: The events whose hooks show warnings.
WARNING_EVENTS = ("UserPromptSubmit", "PostToolBatch", "SubagentStart")
LAUNCH = {"tool_name": "Agent", "tool_input": launch_input("fd-quality")}
#: Every event that Claude Code calls hooks for, and two that it does not have.
EVENTS = (
    "SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "PostToolBatch", "PostToolUseFailure",
    "SubagentStart", "SubagentStop", "Stop", "StopFailure", "SessionEnd", "Notification", "PreCompact", "PostCompact",
    "PermissionRequest", "WorktreeCreate", "SomethingNew", "",
)  # fmt: skip


def write_usage(home: Home, tokens: int, session: str = "s1", message: str = "m1", **more: str) -> None:
    """Write a response into a session's transcript."""
    Transcript(home.root / "claude", session).response(message, tokens=(tokens, 0, 0, 0), **more)


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def attached_sessions(home: Home, run: str) -> dict[str, bool]:
    """Return the sessions that were ever attached to a run; True for those that still are."""
    answer = home.ask(messages.RunShow(run=run, wait_ms=30_000))
    assert isinstance(answer, messages.RunShowAnswer), answer
    return {one.session: one.until is None for one in answer.attachments}


def saved_warning_seq(home: Home, session: str) -> int:
    """Return the number of the last warning that a session has seen, according to the ledger; 0 if none."""
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        found = connection.execute("SELECT max(seq) FROM told WHERE session = ?", (session,)).fetchone()[0]
    finally:
        connection.close()
    return found or 0


def is_warning(output: HookOutput, words: str) -> bool:
    """True if the output is a warning with these words, the same for the model and the user."""
    return words in output.context and output.message == output.context and not output.decision
