"""How versions of Claude Code, and relays between it and the model, write responses to files."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness.transcript_recount import Tokens
from harness.transcripts import assistant_line, encoded

MODELS = ("claude-opus-4-6", "claude-haiku-4-5", "claude-opus-4-6[1m]")
#: How the lines of a response differ: not at all; its output grows; the same without a final line; its first line has
#: the whole prompt as input; and those without some of the ids.
DIALECTS = ("final", "growing", "one id", "split", "relay", "some", "open", "nameless", "nameless requested")
#: Those that another counter counts as we do.
PLAIN_DIALECTS = ("final", "growing", "open")
#: The last version that wrote sub-agents' files beside their sessions', and a new one.
OLD_VERSION, NEW_VERSION = "2.1.1", "2.1.197"
UNREQUESTED = ("relay", "one id", "nameless")


@dataclass
class Billed:
    """A response that was billed. `tokens` are those of its last line so far."""

    session: "Session"
    agent: str
    model: str
    at: int
    message: str | None
    request: str | None
    tokens: Tokens = (0, 0, 0, 0)
    below: tuple[dict[str, Any], ...] = ()


class Step(NamedTuple):
    """A line of a response that is still to be written."""

    tokens: Tokens
    final: bool
    requested: bool


@dataclass
class Writer:
    """A file of a session, or, without a path, a sub-agent that only its session's file quotes."""

    session: "Session"
    agent: str
    path: Path | None
    id: str = ""
    quoted: bool = False
    pending: list[tuple[Billed, list[Step]]] = field(default_factory=list)


@dataclass
class Session:
    """A session. The first writer is that of its own file."""

    name: str
    project: str
    dialect: str
    version: str
    writers: list[Writer] = field(default_factory=list)

    @property
    def main(self) -> Writer:
        """Return the writer of the session's own file."""
        return self.writers[0]

    def record(self, **fields: Any) -> bytes:
        """Return a line that has no usage."""
        return encoded({"type": "user", "sessionId": self.name, "version": self.version, **fields})


class Author:
    """Composes responses and their lines from random numbers.

    With `odd_times`, the lines' times are not always those at which they are written. With `plain`, lines are only
    written in ways that no counter misunderstands.
    """

    def __init__(self, seed: str, *, odd_times: bool, plain: bool) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.odd_times = odd_times
        self.plain = plain
        self._serial = 0

    def number(self) -> int:
        """Return a number that was not returned before."""
        self._serial += 1
        return self._serial

    def uuid(self) -> str:
        """Return the id of a line."""
        return f"{self.number():08x}-{self.seed}"

    def compose(self, writer: Writer, now: int) -> tuple[Billed, list[Step]]:
        """Return a new response, and the lines that it will be written as."""
        dialect, number, chance = writer.session.dialect, self.number(), self.random
        # Unequal inputs, so that responses under one id can be told apart.
        tokens = (number, chance.randrange(4, 900), chance.choice((0, 7 * number)), chance.choice((0, 40)))
        billed = Billed(
            writer.session,
            writer.agent,
            chance.choice(MODELS),
            now,
            None if dialect.startswith("nameless") else "relay" if dialect == "one id" else f"msg_{number}-{self.seed}",
            None if dialect in UNREQUESTED else f"req_{number}-{self.seed}",
            below=self._below(),
        )
        copies = 1 if dialect.startswith("nameless") else chance.randint(1, 4)
        steps = [Step(tokens, dialect != "open", True)] * copies
        if dialect in ("growing", "relay", "open", "some") and chance.random() < 0.7:
            steps = [*(Step((tokens[0], some, *tokens[2:]), False, True) for some in (1, tokens[1] // 2)), *steps]
        elif dialect == "split" and copies > 1:
            whole = tokens[0] + tokens[2] + tokens[3] + 5000
            steps[0] = Step((whole, chance.choice((0, tokens[1] + 9)), 0, 0), False, True)
        if dialect == "some":
            steps = [step._replace(requested=chance.random() < 0.5) for step in steps]
        return billed, steps

    def line(self, billed: Billed, step: Step, now: int, *, sidechain: bool) -> dict[str, Any]:
        """Return a line of a response."""
        iterations: list[dict[str, Any]] = [{"type": "message", **self._usage(step.tokens)}]
        iterations += ({**each, **self._usage(each["tokens"])} for each in billed.below)
        if self.random.random() < 0.3:
            iterations.append({"type": "fallback", **self._usage((777, 77, 7, 0))})
        more = {"iterations": iterations} if billed.below or len(iterations) > 1 else {}
        line = assistant_line(
            billed.session.name,
            billed.message,
            request=billed.request if step.requested else None,
            sidechain=sidechain,
            model=billed.model,
            text=self.random.choice(("Here is what I found.", "é😀" * 40, 'He said "usage".')),
            at=self._time(now),
        )
        line["message"]["usage"] = self._usage(step.tokens) | more
        line["message"]["stop_reason"] = self.random.choice(("end_turn", "tool_use")) if step.final else None
        line["uuid"], line["version"] = self.uuid(), billed.session.version
        return line

    def quoted(self, writer: Writer, line: dict[str, Any]) -> bytes:
        """Return the line of a session's file that quotes a sub-agent's line, perhaps without its request id."""
        parts = ["type", "timestamp", "message", "uuid"]
        if writer.session.dialect == "split" or self.random.random() < 0.7:
            parts.append("requestId")
        message = {name: line[name] for name in parts if name in line}
        data = {"type": "agent_progress", "agentId": writer.id, "message": message}
        record = {"type": "progress", "sessionId": writer.session.name, "data": data, "uuid": self.uuid()}
        return encoded(record | {"timestamp": line["timestamp"]})

    def damage(self, kind: str, session: Session) -> bytes:
        """Return what is before a record on its line."""
        user = session.record(message={"role": "user", "content": "é" * 9})
        if kind == "nuls":
            return bytes(self.random.randrange(1, 5000))
        if kind == "mark":
            return b"\xef\xbb\xbf"
        return user[:-1] if kind == "joined" else user[: self.random.randrange(1, len(user) - 1)]

    def noise(self) -> bytes:
        """Return a line that says nothing about usage."""
        return self.random.choice((b"\n", b"\xff\xfe\n", b"{}\n", b'["usage"]\n', b'{"usage":{"a":\n'))

    def _below(self) -> tuple[dict[str, Any], ...]:
        if self.random.random() < 0.8:
            return ()
        kind = self.random.choice(("advisor_message", "compaction"))
        if self.plain:
            kind = "advisor_message"
        return ({"type": kind, "model": "claude-opus-4-7", "tokens": (self.random.randrange(1, 5000), 11, 3, 0)},)

    def _time(self, now: int) -> str:
        at = datetime.fromtimestamp(now / 1_000_000, UTC)
        kind = self.random.choice(("ms", "ms", "s", "behind", "ahead", "zone")) if self.odd_times else "ms"
        if kind == "s":
            return at.strftime("%Y-%m-%dT%H:%M:%SZ")
        if kind in ("behind", "ahead"):
            seconds = self.random.randrange(1, 100)
            at = datetime.fromtimestamp(at.timestamp() + (seconds if kind == "ahead" else -seconds), UTC)
        text = at.isoformat(timespec="milliseconds")
        return text if kind == "zone" else text.replace("+00:00", "Z")

    def _usage(self, tokens: Tokens) -> dict[str, Any]:
        """Return usage as one of the versions writes it."""
        written: dict[str, Any] = {
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "cache_read_input_tokens": tokens[2],
            "cache_creation_input_tokens": tokens[3],
            "service_tier": "standard",
        }
        kind = self.random.choice(("flat", "parts") if self.plain else ("flat", "parts", "zeros", "floats", "absent"))
        if kind == "parts":
            hour = self.random.randrange(tokens[3] + 1)
            parts = {"ephemeral_5m_input_tokens": tokens[3] - hour, "ephemeral_1h_input_tokens": hour}
            written["cache_creation"] = parts
            written["cache_creation_input_tokens"] = self.random.choice((0, tokens[3]))
        elif kind == "zeros":
            written["cache_creation"] = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
        elif kind == "floats":
            written["output_tokens"] = float(tokens[1])
        elif kind == "absent":
            written = {name: value for name, value in written.items() if value != 0}
            written["speed"] = "fast"
        return written
