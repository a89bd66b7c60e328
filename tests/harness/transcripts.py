"""Transcripts as Claude Code writes them."""

import json
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

#: input, output, cache reads, cache creation
Tokens = tuple[int, int, int, int]

#: A request id that no other session has.
OF_SESSION = "of the session"

_serial = count(1)


def encoded(line: object) -> bytes:
    """Return a line as JavaScript writes JSON."""
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def timestamp() -> str:
    """Return the time as a transcript writes it, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def assistant_line(
    session: str,
    message: str | None = "msg_1",
    *,
    request: str | None = OF_SESSION,
    tokens: Tokens = (0, 0, 0, 0),
    sidechain: bool = False,
    model: str = "claude-opus-4-6",
    text: str = "Here is what I found.",
    stop: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return one line of a response. `at` is its time, by default now; further arguments are part of its usage."""
    at = more.pop("at", timestamp())
    line: dict[str, Any] = {
        "parentUuid": f"00000000-0000-4000-8000-{next(_serial):012}",
        "isSidechain": sidechain,
        "userType": "external",
        "cwd": "/home/me/work",
        "sessionId": session,
        "version": "2.1.197",
        "gitBranch": "main",
        "message": {
            "model": model,
            "id": message,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}],
            "stop_reason": stop,
            "usage": {
                "input_tokens": tokens[0],
                "cache_creation_input_tokens": tokens[3],
                "cache_read_input_tokens": tokens[2],
                "output_tokens": tokens[1],
                "service_tier": "standard",
                **more,
            },
        },
        "requestId": f"req_{session}" if request == OF_SESSION else request,
        "type": "assistant",
        "uuid": f"00000000-0000-4000-8000-{next(_serial):012}",
        "timestamp": at,
    }
    if message is None:
        del line["message"]["id"]
    if request is None:
        del line["requestId"]
    return line


def progress_line(session: str, agent: object, quoted: object, *, at: object = None) -> dict[str, Any]:
    """Return a line of an old version that quotes a line of a sub-agent."""
    return {
        "parentUuid": f"00000000-0000-4000-8000-{next(_serial):012}",
        "isSidechain": False,
        "sessionId": session,
        "version": "2.1.197",
        "type": "progress",
        "data": {"message": quoted, "normalizedMessages": [], "type": "agent_progress", "agentId": agent},
        "toolUseID": "agent_msg_1",
        "uuid": f"00000000-0000-4000-8000-{next(_serial):012}",
        "timestamp": at or timestamp(),
    }


def encoded_without(line: dict[str, Any], *names: str) -> bytes:
    """Return a line as JavaScript writes it, without these keys of the line or of its message."""
    for name in names:
        line.pop(name, None)
        line["message"].pop(name, None)
    return encoded(line)


class Transcript:
    """Writes one session's main transcript; `agent` returns the writers of its sub-agents' transcripts."""

    def __init__(
        self, claude_dir: Path, session: str, project: str = "-home-me-work", *, path: Path | None = None
    ) -> None:
        self.session = session
        self.path = path or claude_dir / "projects" / project / f"{session}.jsonl"
        self.subagents = self.path.parent / session / "subagents"
        self.sidechain = path is not None
        self._rest = b""

    def response(self, message: str | None = "msg_1", **fields: Any) -> None:
        """Append a line of a response: see `assistant_line`."""
        self.line(encoded(assistant_line(self.session, message, **{"sidechain": self.sidechain, **fields})))

    def line(self, raw: bytes) -> None:
        """Append any bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(raw)

    def incomplete(self, message: str = "msg_1", **fields: Any) -> None:
        """Append the first half of a response's line; `rest` appends the second."""
        line = encoded(assistant_line(self.session, message, **{"sidechain": self.sidechain, **fields}))
        self._rest = line[len(line) // 2 :]
        self.line(line[: len(line) // 2])

    def rest(self) -> None:
        self.line(self._rest)

    def agent(self, name: str, *deeper: str) -> "Transcript":
        """Return the writer of a sub-agent's transcript, `agent-<name>.jsonl`."""
        return Transcript(Path(), self.session, path=self.subagents.joinpath(*deeper, f"agent-{name}.jsonl"))

    def meta(self, raw: bytes | None = None, **fields: Any) -> Path:
        """Write the file beside a sub-agent's transcript that names its agent."""
        path = self.path.with_suffix(".meta.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(fields) if raw is None else raw)
        return path


class Counted(NamedTuple):
    """Tokens of one response."""

    agent: str
    model: str
    tokens: Tokens
