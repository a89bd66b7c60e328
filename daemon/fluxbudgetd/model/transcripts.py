"""What is read from transcripts."""

import msgspec

from fluxbudgetd.model.sources import SourceStatus


class Copy(msgspec.Struct, frozen=True, gc=False):
    """A response's usage on one line. A response is written on several lines, whose copies share a `message`.

    `message` identifies the response within the session and is the same after a restart; `key` also identifies its
    request. `file` is the number of the line's transcript. `at` is None if the line's time cannot be read. `model` is
    empty if the line does not come from a model.
    """

    message: int
    key: int
    sidechain: bool
    file: int
    at: int | None
    agent: str
    model: str
    input: int
    output: int
    cache_read: int
    cache_creation: int

    @property
    def size(self) -> int:
        """Return the sum of all the line's tokens."""
        return self.input + self.output + self.cache_read + self.cache_creation


class TranscriptFile(msgspec.Struct, frozen=True):
    """How far a transcript has been read: up to `offset`, the end of the last complete line.

    `number` identifies the file within its session and never changes. `mark` is a digest of the bytes just before
    `offset`; if it differs, the file was rewritten. `skipped` counts lines that could not be read, `anomalies` invalid
    counts.
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


class TranscriptReading(msgspec.Struct, frozen=True):
    """What was added to a session's transcripts since they were last read.

    `files`: every file of the session that was ever read, with its new position; a deleted file keeps its last one.
    `reset`: the numbers of the files whose earlier copies are void, because those files are read again from their
    start; None if there are no such files. `more`: there is more to read.
    """

    copies: tuple[Copy, ...]
    files: tuple[TranscriptFile, ...]
    reset: frozenset[int] | None
    more: bool
    status: SourceStatus
