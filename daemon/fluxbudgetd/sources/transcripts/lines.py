"""Take the copies of responses from the lines of a transcript."""

import re
from collections.abc import Callable
from hashlib import blake2b

import msgspec

from fluxbudgetd.model import OWN, QUOTED, SIDECHAIN, Copy, TranscriptFile
from fluxbudgetd.sources.transcripts import usages
from fluxbudgetd.sources.transcripts.records import (
    ASSISTANT,
    USAGE,
    Message,
    Record,
    agent_progress,
    origin,
    plain,
    read_record,
    string,
)
from fluxbudgetd.sources.transcripts.salvage import Budget, salvage
from fluxbudgetd.sources.transcripts.stated import stated
from fluxbudgetd.sources.values import moment, text

# A shorter line has no whole record with usage. It may be the beginning of one, unless it has an end or another type.
_SHORTEST = len(b'{"type":"assistant","message":{"usage":{}}}')
_CUT = re.compile(rb'[\0\s\xef\xbb\xbf]*\{(?!.*\}\s*\Z)(?!.*"type":"(?!assistant|progress)\w+")', re.DOTALL)
_ID_BYTES = 8

# A response with one of these stop reasons is followed by another one of its turn.
_GOES_ON = frozenset({"tool_use", "pause_turn"})

# Before this version, Claude Code wrote each response's usage when its first tokens arrived, and never again.
_FINAL_OUTPUTS = (2, 1, 97)
_VERSION = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", re.ASCII)


class Harvest:
    """What is found in the new lines of one transcript of a session.

    `file` is what was known of the transcript. `skipped` counts the lines whose usage could not be read, `anomalies`
    the invalid counts. `latest` is the latest time of a copy, `placeholders` the newest version that wrote placeholder
    outputs, `stated_billing` and `stated_total` Claude Code's latest sums. `ends_turn`: the last response ends its
    turn.
    """

    def __init__(self, file: TranscriptFile, session: str, clock: Callable[[], int]) -> None:
        self.copies: list[Copy] = []
        self.skipped = 0
        self.anomalies = 0
        self.latest = file.latest
        self.placeholders = file.placeholders
        self.stated_billing = file.stated_billing
        self.stated_total = file.stated_total
        self.ends_turn = file.ends_turn
        self._file = file
        self._session = session
        self._clock = clock
        self._now = 0
        self._budget = Budget()

    def add(self, line: bytes) -> None:
        """Add a line; never raises because of its content."""
        if len(line) < _SHORTEST:
            self.skipped += b"{" in line and _CUT.match(line) is not None
            return
        try:
            self._take(line)
        except msgspec.ValidationError:
            self.skipped += USAGE in line
        except (ValueError, RecursionError):
            self.skipped += salvage(line, self._budget, self._take)

    def _take(self, line: bytes, needs_session: bool = False) -> None:
        """Add a record if it has usage. Raise `ValueError` or `RecursionError` if the line is not one record."""
        record = read_record(line)
        if record is None or (needs_session and not string(record.session_id)):
            return
        match string(record.type):
            case "assistant":
                place = SIDECHAIN if plain(record.is_sidechain) is True else OWN
                self._add(record, record, place, self._file.agent, line)
            case "progress":
                self._add_quoted(record, line)
            case _:
                sums = stated(record, self._session)
                if sums is not None:
                    self.stated_billing, self.stated_total = sums

    def _add_quoted(self, record: Record, line: bytes) -> None:
        progress = agent_progress(record)
        quoted = None if progress is None else read_record(progress.message)
        if progress is not None and quoted is not None and string(quoted.type) == ASSISTANT:
            agent = string(progress.agent_id)
            self._add(record, quoted, QUOTED, f"agent-{text(agent)}" if agent else self._file.agent, line)

    def _add(self, line: Record, record: Record, place: int, agent: str, raw: bytes) -> None:
        """Add a line's copy. `record` is the assistant's: the line itself, or what it quotes."""
        message = record.message
        if not message or not message.usage:
            return
        model = usages.model_name(message.model)
        counts, invalid = usages.top_level(message.usage, model)
        below, invalid_below = usages.below(message.usage, model)
        self.anomalies += invalid + invalid_below
        reason = plain(message.stop_reason)
        is_final = isinstance(reason, str)
        if place != QUOTED:
            self.ends_turn = is_final and reason not in _GOES_ON
        if model and not is_final:
            self._note_version(string(line.version))
        identity, name, has_request = _names(message, record, line, raw)
        self.copies.append(
            Copy(
                identity=identity,
                message=name,
                has_request=has_request,
                is_fork=origin(line) not in ("", self._session),
                place=place,
                is_final=is_final,
                file=self._file.number,
                at=self._time(record, line),
                agent=agent,
                model=model,
                input=counts.input,
                output=counts.output,
                cache_read=counts.cache_read,
                cache_creation=counts.cache_creation,
                cache_1h=counts.cache_1h,
                is_fast=string(message.usage.speed) == "fast",
                below=below,
            )
        )

    def _time(self, record: Record, line: Record) -> int | None:
        """Return the time of a copy. Within a file it never goes backwards; a time in the future becomes now."""
        at = moment(plain(record.timestamp))
        if at is None:
            at = moment(plain(line.timestamp))
        if at is None:
            return None
        if at > self._now:
            self._now = self._clock()
        at = min(at, self._now)
        self.latest = at if self.latest is None else max(at, self.latest)
        return self.latest

    def _note_version(self, version: str) -> None:
        found = _version(version)
        if found is not None and found < _FINAL_OUTPUTS and found > (_version(self.placeholders) or ()):
            self.placeholders = ".".join(map(str, found))


def _names(message: Message, record: Record, line: Record, raw: bytes) -> tuple[int, int, bool]:
    """Return the identity of a copy and of its message, and True if it has both a message id and a request id."""
    name, request = string(message.id), string(record.request_id)
    message_name = _digest(name.encode()) if name else None
    if message_name is not None and request:
        return _digest(message_name.to_bytes(_ID_BYTES) + request.encode(), b"request"), message_name, True
    uuid = string(record.uuid) or string(line.uuid)
    identity = _digest(uuid.encode(), b"uuid") if uuid else _digest(raw.strip(), b"line")
    return identity, identity if message_name is None else message_name, False


def _version(version: str) -> tuple[int, ...] | None:
    found = _VERSION.match(version)
    return tuple(map(int, found.groups())) if found else None


def _digest(raw: bytes, kind: bytes = b"") -> int:
    return int.from_bytes(blake2b(raw, digest_size=_ID_BYTES, person=kind).digest()) >> 1
