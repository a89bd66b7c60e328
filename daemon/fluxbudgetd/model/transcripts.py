"""What is read from transcripts."""

from collections.abc import Mapping

import msgspec

from fluxbudgetd.model.sources import SourceStatus

#: How a copy is written, best first: in the session's own conversation, in a sidechain, or quoted by a progress line.
OWN, SIDECHAIN, QUOTED = range(3)


class ModelUsage(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Tokens that a response used below its top level, of one model: an advisor's, or a compaction's."""

    model: str
    input: int
    output: int
    cache_read: int
    cache_creation: int
    cache_1h: int


class Copy(msgspec.Struct, frozen=True, gc=False):
    """A response's usage on one line. A response is written on several lines, and may be copied to other files.

    `identity` is a digest: of the message id and the request id if `has_request`, otherwise of the line's `uuid`, or of
    the line itself if it has none. `message` is a digest of the message id; a line without one has its own. `is_fork`:
    the line says that it was copied from another session (`forkedFrom`). `place` is `OWN`, `SIDECHAIN` or `QUOTED`.
    `is_final`: the line has a `stop_reason`. `file` is the number of the line's transcript. `at` is None if the line's
    time cannot be read. `model` is empty if the line does not come from a model. `cache_creation` includes `cache_1h`,
    its part with a lifetime of one hour. `below` is what the top level does not include.
    """

    identity: int
    message: int
    has_request: bool
    is_fork: bool
    place: int
    is_final: bool
    file: int
    at: int | None
    agent: str
    model: str
    input: int
    output: int
    cache_read: int
    cache_creation: int
    cache_1h: int
    is_fast: bool
    below: tuple[ModelUsage, ...] = ()


class Response(msgspec.Struct, frozen=True, gc=False):
    """A response as it counts: once, for the session that had it first.

    `key` identifies it across sessions. `message` and `at` are those of the first copy; the other fields from `place`
    on are those of the copy that counts. If that one is in another session's file, `file` and `agent` stay what they
    were. `has_request`: one of its copies has a request id. `born` orders responses by when they were first read.
    """

    key: int
    session: str
    message: int
    has_request: bool
    born: int
    place: int
    is_final: bool
    file: int
    at: int | None
    agent: str
    model: str
    input: int
    output: int
    cache_read: int
    cache_creation: int
    cache_1h: int
    is_fast: bool
    below: tuple[ModelUsage, ...] = ()


class TranscriptFile(msgspec.Struct, frozen=True):
    """How far a transcript has been read: up to `offset`, the end of the last complete line.

    `number` identifies the file within its session and never changes. `mark` is a digest of the bytes just before
    `offset`; if it differs, the file was rewritten. Then `is_gone` is set for good, and what is at the path now is
    another file with a number of its own. `skipped` counts lines whose usage could not be read, `anomalies` invalid
    counts. `latest` is the latest time of a copy. `placeholders` is the newest Claude Code version that wrote
    placeholder outputs to the file, or empty. `stated_billing` and `stated_total` are the session's tokens as Claude
    Code itself last summed them in the file (`cost-state`), or None. `ends_turn`: the last response ends its turn, so a
    sub-agent has finished, unless it is resumed.
    """

    number: int
    path: str
    dev: int
    ino: int
    offset: int
    mark: bytes
    agent: str
    skipped: int = 0
    anomalies: int = 0
    latest: int | None = None
    is_gone: bool = False
    placeholders: str = ""
    stated_billing: int | None = None
    stated_total: int | None = None
    ends_turn: bool = False


class Losses(msgspec.Struct, frozen=True):
    """What is missing from a session's transcripts, as sentences that begin with a path; long lists are cut short.

    `unread`: lines whose usage could not be read. `unfollowed`: transcripts that are known but cannot be followed.
    `placeholders`: files with placeholder outputs.
    """

    unread: tuple[str, ...] = ()
    unfollowed: tuple[str, ...] = ()
    placeholders: tuple[str, ...] = ()


class TranscriptReading(msgspec.Struct, frozen=True):
    """What was added to a session's transcripts since they were last read.

    `copies` are in the order of the lines, file by file. `files`: every file of the session that was ever read, with
    its new position; a deleted file keeps its last one. `kept`: the numbers of files that were read and are not at
    their path any more, because they were replaced, truncated or deleted. `calls`: by the number of a sub-agent's file,
    the id of the tool call that launched it. `more`: there is more to read.
    """

    copies: tuple[Copy, ...]
    files: tuple[TranscriptFile, ...]
    more: bool
    status: SourceStatus
    losses: Losses = Losses()
    kept: frozenset[int] = frozenset()
    calls: Mapping[int, str] = {}
