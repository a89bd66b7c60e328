"""Transcripts as Claude Code writes them, and a slow, obvious recount of them."""

import json
from collections.abc import Mapping
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
            "stop_reason": None,
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
    """One response of the recount."""

    agent: str
    model: str
    tokens: Tokens


def recount(files: Mapping[int, tuple[bytes, str]]) -> list[Counted]:
    """Return the responses that count in transcripts, which map a file's number to its bytes and its agent.

    It shares no code with the daemon. The rules:

    * An assistant's line counts if it is complete, is JSON and has an object as its usage.
    * Lines with the same message id are one response. A line without one is known by its uuid, or is a response of its
      own.
    * If some of a response's lines are not of a sidechain, those of sidechains do not count, and each request id among
      the others counts once. Otherwise the response counts once.
    * Of the lines that count once together, the one with the most tokens counts. Ties are decided by the most input
      and output tokens, the earliest time (no time comes last), the lowest file number, agent, model and counts.
    """
    responses: dict[object, list[tuple[Any, ...]]] = {}
    for number, (raw, agent) in files.items():
        for position, line in enumerate(raw.split(b"\n")[:-1]):
            found = _understood(line)
            if found is None:
                continue
            message = found["message"]
            usage = message["usage"]
            tokens = (
                _count(usage.get("input_tokens")),
                _count(usage.get("output_tokens")),
                _count(usage.get("cache_read_input_tokens")),
                _creation(usage),
            )
            name = message.get("id") or found.get("uuid") or (number, position)
            model = "" if message.get("model") == "<synthetic>" else message.get("model", "")
            seconds = _seconds(found.get("timestamp"))
            order = (-sum(tokens), -sum(tokens[:2]), seconds is None, seconds or 0, number, agent, model, *tokens)
            copy = (order, found.get("isSidechain") is True, found.get("requestId"), Counted(agent, model, tokens))
            responses.setdefault(name, []).append(copy)
    counted = []
    for copies in responses.values():
        own = [copy for copy in copies if not copy[1]]
        groups: dict[object, list[tuple[Any, ...]]] = {}
        for copy in own or copies:
            groups.setdefault(copy[2] if own else None, []).append(copy)
        counted += [min(group, key=lambda copy: copy[0])[3] for group in groups.values()]
    return sorted(counted)


def _understood(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("type") != "assistant":
        return None
    message = found.get("message")
    return found if isinstance(message, dict) and isinstance(message.get("usage"), dict) else None


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _creation(usage: dict[str, Any]) -> int:
    parts = usage.get("cache_creation")
    names = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
    if isinstance(parts, dict) and any(parts.get(name) is not None for name in names):
        return sum(_count(parts.get(name)) for name in names)
    return _count(usage.get("cache_creation_input_tokens"))


def _seconds(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None
