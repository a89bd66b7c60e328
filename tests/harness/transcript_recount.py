"""A slow, obvious recount of transcripts, in the order in which they are read. It shares no code with the daemon.

The rules:

* A line is an assistant's line with an object as its usage, or a progress line that quotes one. Records on one line
  after NULs, after a byte order mark, after each other or after the first half of another are read one by one.
* A line with a message id and a request id is known by both, in all sessions. Any other line is known by its uuid, or
  by its bytes if it has none.
* A line that is known is a copy of its response, which stays with the session that had it first. A line that says
  that it was forked from another session never makes a response.
* Otherwise the line may belong to the latest response with its message id: the one whose best copy is in the same
  file, or else the latest of the session. It does if that response is not final yet, or has the same input and cache
  counts; but two request ids are two responses, unless a sidechain repeats a response of a session's own
  conversation: then it has the same message id, input and cache counts. If a later line shows that another session
  or file had the response, its first lines were copies, too.
* Of a response's copies, one of the session's own conversation counts before one of a sidechain, and that before a
  quoted one; then a final copy; then the one with the most output; then the largest; then the first, unless its file
  is gone. The response has the time of its first copy, and its agent belongs to its session.
* What was counted keeps counting, whatever happens to the file.
* In a file, time never goes back, and it is never later than now. What is new in a known session is not older than the
  latest change of its run, even if the clock is.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

#: input, output, cache reads, cache creation
Tokens = tuple[int, int, int, int]
#: The parts of a session, of which the earlier ones take precedence.
OWN, SIDECHAIN, QUOTED = range(3)

LONGEST_LINE = 8 << 20
MAIN = "main-session"
_ZERO: Tokens = (0, 0, 0, 0)


class Line(NamedTuple):
    """What one line says about a response."""

    identity: str
    message: str
    requested: bool
    forked: bool
    place: int
    final: bool
    at: int | None
    agent: str
    model: str
    tokens: Tokens
    below: tuple[tuple[str, Tokens], ...]

    @property
    def rank(self) -> tuple[int, bool, int, int]:
        """Return the sort key of the copy; the largest counts."""
        size = sum(self.tokens) + sum(sum(tokens) for _, tokens in self.below)
        return -self.place, self.final, self.tokens[1], size

    @property
    def prompt(self) -> tuple[int, int, int]:
        """Return the input and the cache counts, which all copies of a final response share."""
        return self.tokens[0], self.tokens[2], self.tokens[3]


@dataclass
class Response:
    """A response: its first copy's message id and time, and its best copy."""

    session: str
    message: str
    born: int
    at: int | None
    requested: bool
    best: Line
    file: "ReadFile"


@dataclass(eq=False)
class ReadFile:
    """A file, as far as it has been read. `earlier` is the file that it has replaced."""

    session: str
    device: tuple[int, int]
    agent: str
    taken: bytes = b""
    latest: int | None = None
    gone: bool = False
    earlier: "ReadFile | None" = None


class Counted(NamedTuple):
    """Tokens of one agent and one model at one time."""

    session: str
    at: int | None
    agent: str
    model: str
    tokens: Tokens


class Found(NamedTuple):
    """A file of a session."""

    path: Path
    agent: str


class TranscriptRecount:
    """Everything that was ever read."""

    def __init__(self) -> None:
        self.responses: list[Response] = []
        self._born = 0
        self._known: dict[str, Response] = {}
        self._seen: set[str] = set()
        self._files: dict[tuple[str, Path], ReadFile] = {}

    def restart(self) -> None:
        """Forget that sessions without a file were read."""
        self._seen = {session for session, _ in self._files}

    def read(self, session: str, files: Iterable[Found], now: int, latest: int) -> None:
        """Take in what is new in a session's files, in their order. Its run has changed last at `latest`."""
        # If the clock was set back since then, what is new is later nevertheless.
        earliest = latest if now < latest and session in self._seen else 0
        self._seen.add(session)
        found = {path: (path.read_bytes(), path.stat(), agent) for path, agent in files}
        for (name, path), known in self._files.items():
            if name == session:
                known.gone = path not in found or _is_other(known, *found[path][:2])
        for path, (raw, info, agent) in found.items():
            self._rename(session, path, agent)
            file = self._files.get((session, path))
            if file is None or file.gone:
                file = self._files[session, path] = ReadFile(session, (info.st_dev, info.st_ino), agent, earlier=file)
            file.device = info.st_dev, info.st_ino
            self.add(session, file, raw, now, earliest)

    def add(self, session: str, file: ReadFile, raw: bytes, now: int = 0, earliest: int = 0) -> None:
        """Take in what is new in a file that now has these bytes."""
        whole = raw[: raw.rfind(b"\n") + 1]
        for line in whole[len(file.taken) :].split(b"\n")[:-1]:
            for one in lines(line, file.agent):
                self._take(session, file, _in_time(one, file, now, earliest))
        file.taken = whole

    def counted(self) -> Iterator[Counted]:
        """Yield the tokens of every response."""
        for response in self.responses:
            best = response.best
            yield Counted(response.session, response.at, best.agent, best.model, best.tokens)
            for model, tokens in best.below:
                yield Counted(response.session, response.at, best.agent, model, tokens)

    def _rename(self, session: str, path: Path, agent: str) -> None:
        """Note the name of the agent of a file, and of those that it has replaced. It may become known later."""
        file = self._files.get((session, path))
        while file is not None and file.agent != agent:
            for response in self.responses:
                if response.file is file and response.best.agent == file.agent:
                    response.best = response.best._replace(agent=agent)
            file.agent = agent
            file = file.earlier

    def has_own(self, message: str | None) -> bool:
        """True if a session has a response with this message id in its own conversation."""
        return any(one.message == message and one.best.place == OWN for one in self.responses)

    def _take(self, session: str, file: ReadFile, line: Line) -> None:
        candidates = [one for one in self.responses if one.session == session and one.message == line.message]
        latest = max(
            [one for one in candidates if one.file is file] or candidates, key=lambda one: one.born, default=None
        )
        known = self._known.get(line.identity)
        if known is not None:
            if known.session != session or known.file is not file:
                self._absorb_first_lines(known, line, [one for one in candidates if one.file is file])
            _improve(known, session, line, file)
            return
        if line.forked:
            return
        if latest is not None and _joins(latest, line):
            response = latest
        elif (replayed := self._replayed(line)) is not None:
            response = replayed
        else:
            self._born += 1
            response = Response(session, line.message, self._born, line.at, line.requested, line, file)
            self.responses.append(response)
        self._known[line.identity] = response
        _improve(response, session, line, file)

    def _replayed(self, line: Line) -> Response | None:
        for one in reversed(self.responses):
            is_same = one.message == line.message and one.best.prompt == line.prompt
            places = {one.best.place, line.place}
            if is_same and line.requested and one.requested and places == {OWN, SIDECHAIN}:
                return one
        return None

    def _absorb_first_lines(self, known: Response, line: Line, candidates: list[Response]) -> None:
        """Drop the response that a copy's first lines made, because they had no request id yet."""
        first = max(candidates, key=lambda one: one.born, default=None)
        if first is None or first is known or first.requested or not line.requested or not _joins(first, line):
            return
        self.responses.remove(first)
        for identity, one in self._known.items():
            if one is first:
                self._known[identity] = known
        _improve(known, first.session, first.best, first.file)


def _is_other(file: ReadFile, raw: bytes, info: os.stat_result) -> bool:
    """True if what is at a file's path now is not the file of which a part has been read."""
    if not file.taken:
        return False
    return file.device != (info.st_dev, info.st_ino) or not raw.startswith(file.taken)


def _joins(response: Response, line: Line) -> bool:
    if line.requested and response.requested:
        return False
    return not response.best.final or response.best.prompt == line.prompt


def _improve(response: Response, session: str, line: Line, file: ReadFile) -> None:
    response.requested |= line.requested
    if line.rank > response.best.rank:
        if response.session == session:
            response.best, response.file = line, file
        else:
            response.best = line._replace(agent=response.best.agent)
    elif line.rank == response.best.rank and response.file.gone and response.session == session:
        response.best, response.file = response.best._replace(agent=line.agent), file


def _in_time(line: Line, file: ReadFile, now: int, earliest: int) -> Line:
    if line.at is None:
        return line
    file.latest = max(min(line.at, now), file.latest or 0)
    return line._replace(at=max(file.latest, earliest))


def count_lines(raw: bytes, agent: str) -> list[Counted]:
    """Return the responses in a file that has nothing to do with other files."""
    recount = TranscriptRecount()
    recount.add("session", ReadFile("session", (0, 0), agent), raw)
    return list(recount.counted())


def lines(raw: bytes, agent: str) -> Iterator[Line]:
    """Yield what a line of a transcript says about responses."""
    if len(raw) > LONGEST_LINE:
        return
    for record, text in records(raw):
        line = understood(record, text, agent)
        if line is not None:
            yield line


def records(raw: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each JSON object on a line, and its text."""
    text = raw.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = position + 1
        else:
            if isinstance(found, dict):
                yield found, text[position:end]
        position = text.find("{", end)


def understood(record: dict[str, Any], text: str, agent: str) -> Line | None:
    """Return what a record says about a response, or None."""
    place = SIDECHAIN if record.get("isSidechain") is True else OWN
    forked = isinstance(record.get("forkedFrom"), dict)
    data = record.get("data")
    if record.get("type") == "progress" and isinstance(data, dict) and data.get("type") == "agent_progress":
        place, agent = QUOTED, f"agent-{data.get('agentId')}"
        record = data["message"] if isinstance(data.get("message"), dict) else {}
    message = record.get("message")
    if record.get("type") != "assistant" or not isinstance(message, dict):
        return None
    usage = message.get("usage")
    if not isinstance(usage, dict):
        return None
    model = message.get("model")
    model = model if isinstance(model, str) and model != "<synthetic>" else ""
    name, request, uuid = message.get("id"), record.get("requestId"), record.get("uuid")
    own = f"uuid {uuid}" if uuid else f"text {text}"
    requested = bool(name and request)
    return Line(
        identity=f"message {name} of {request}" if requested else own,
        message=name or own,
        requested=requested,
        forked=forked,
        place=place,
        final=isinstance(message.get("stop_reason"), str),
        at=micros(record.get("timestamp")),
        agent=agent,
        model=model,
        tokens=counts(usage),
        below=tuple(_below(usage, model)),
    )


def counts(usage: dict[str, Any]) -> Tokens:
    parts = usage.get("cache_creation")
    creation = 0
    if isinstance(parts, dict):
        creation = count(parts.get("ephemeral_5m_input_tokens")) + count(parts.get("ephemeral_1h_input_tokens"))
    return (
        count(usage.get("input_tokens")),
        count(usage.get("output_tokens")),
        count(usage.get("cache_read_input_tokens")),
        creation or count(usage.get("cache_creation_input_tokens")),
    )


def _below(usage: dict[str, Any], model: str) -> Iterator[tuple[str, Tokens]]:
    iterations = usage.get("iterations")
    for one in iterations if isinstance(iterations, list) else ():
        if isinstance(one, dict) and one.get("type") in ("advisor_message", "compaction"):
            yield one.get("model") or model, counts(one)


def count(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 2**63 else 0


def micros(value: object) -> int | None:
    """Return a time in microseconds since the epoch, or None if it is not one."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000)


def files_of(claude_dir: Path, session: str) -> list[Found]:
    """Return a session's files, its own before those of its sub-agents."""
    projects = claude_dir / "projects"
    own = projects.glob(f"*/{session}.jsonl")
    agents = [
        *projects.glob(f"*/{session}/subagents/**/agent-*.jsonl"),
        *(path for path in projects.glob("*/agent-*.jsonl") if _names(path, session)),
    ]
    return [
        *(Found(path, MAIN) for path in sorted(own, key=str)),
        *(Found(path, _agent_of(path)) for path in sorted(agents, key=str)),
    ]


def _agent_of(path: Path) -> str:
    meta = path.with_suffix(".meta.json")
    return json.loads(meta.read_bytes())["agentType"] if meta.exists() else path.stem


def _names(path: Path, session: str) -> bool:
    """True if the first line of a file that names a session names this one."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        for record, _ in records(line):
            if isinstance(record.get("sessionId"), str):
                return bool(record["sessionId"] == session)
    return False


class Attachment(NamedTuple):
    """A session's period in a run. The session counts for the run from `counts_from` until `until`."""

    run: str
    since: int
    counts_from: int
    until: int | None


def covers(attachment: Attachment, at: int | None) -> bool:
    """True if a response of this time belongs to the attachment.

    A whole second stands for all of it, and a whole millisecond, too. A response without a time is the newest.
    """
    if at is None:
        return attachment.until is None
    last = at + 999_999 if at % 1_000_000 == 0 else at + 999 if at % 1000 == 0 else at
    return last >= attachment.counts_from and (attachment.until is None or at < attachment.until)


class Attachments:
    """Which session belonged to which run, and when."""

    def __init__(self) -> None:
        self.of: dict[str, list[Attachment]] = {}

    def attach(self, session: str, run: str, *, now: int, started: int, whole: bool) -> None:
        """Record that a person or a hook attached a session at `now` to a run that started at `started`."""
        known = self.of.setdefault(session, [])
        if known and known[-1].until is None:
            if known[-1].run == run:
                known[-1] = known[-1]._replace(counts_from=0 if whole else known[-1].counts_from)
                return
            known[-1] = known[-1]._replace(until=now)
        counts_from = 0 if whole else now if known else started
        known.append(Attachment(run, now, counts_from, None))

    def detach(self, session: str, *, now: int) -> None:
        """Record that a session left its run."""
        self.of[session][-1] = self.of[session][-1]._replace(until=now)

    def current(self, session: str) -> Attachment | None:
        """Return a session's attachment, if it has one."""
        known = self.of.get(session, [])
        return known[-1] if known and known[-1].until is None else None

    def run_of(self, session: str, at: int | None) -> str | None:
        """Return the run that a response belongs to, or None."""
        for attachment in self.of.get(session, []):
            if covers(attachment, at):
                return attachment.run
        return None


#: (agent, model) → tokens
Sums = dict[tuple[str, str], Tokens]


def summed(counted: Iterable[Counted], run_of: Callable[[str, int | None], str | None]) -> dict[str | None, Sums]:
    """Return run → agent and model → tokens; None stands for no run."""
    sums: dict[str | None, Sums] = {}
    for one in counted:
        if any(one.tokens):
            cells = sums.setdefault(run_of(one.session, one.at), {})
            before = cells.get((one.agent, one.model), _ZERO)
            cells[one.agent, one.model] = plus(before, one.tokens)
    return sums


def plus(left: Tokens, right: Tokens) -> Tokens:
    """Return the sums of both."""
    return left[0] + right[0], left[1] + right[1], left[2] + right[2], left[3] + right[3]
