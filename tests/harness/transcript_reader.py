"""A reader that follows one session's transcripts as the daemon does."""

from pathlib import Path
from typing import Any

import msgspec

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Copy, Response, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.sources.transcripts.lines import Harvest
from harness.daemon import wait_for
from harness.responses import Responses, total
from harness.transcripts import Counted, Transcript, assistant_line, encoded

SESSION = "0b5ce9a2-2f6a-4f0e-9d3c-1f2e3d4c5b6a"
MIB = 1 << 20


class Reader:
    """Keeps the session's responses."""

    def __init__(self, claude_dir: Path, session: str = SESSION) -> None:
        self.claude_dir = claude_dir
        self.session = session
        self.source = TranscriptSource([str(claude_dir)])
        self.all = Responses()
        self.files: tuple[TranscriptFile, ...] = ()
        self.received = 0

    def read_once(self) -> TranscriptReading:
        """Take in one bounded reading."""
        reading = self.source.read(self.session)
        before = {file.number: file.agent for file in self.files}
        renamed = {
            file.number: (before[file.number], file.agent)
            for file in reading.files
            if before.get(file.number, file.agent) != file.agent
        }
        self.all.add(self.session, *reading.copies, lost=reading.kept, renamed=renamed)
        self.received += len(reading.copies)
        self.files = reading.files
        return reading

    def read(self) -> TranscriptReading:
        """Read until nothing is left; return the last reading."""
        while (reading := self.read_once()).more:
            assert self.source.changed(self.session)
        return reading

    def settle(self) -> None:
        """Read until nothing counts as changed, as a directory does for a moment after it was made."""

        def settled() -> bool:
            self.read()
            return not self.source.changed(self.session)

        wait_for(settled, "the directories to be old enough")

    def restart(self) -> None:
        """Continue as another process would, with the positions that were kept."""
        files = msgspec.msgpack.decode(msgspec.msgpack.encode(self.files), type=tuple[TranscriptFile, ...])
        self.source = TranscriptSource([str(self.claude_dir)])
        self.source.restore(self.session, files)

    @property
    def responses(self) -> list[Response]:
        """Return the session's responses, oldest first."""
        return self.all.of(self.session)

    @property
    def counted(self) -> list[Counted]:
        return sorted(
            Counted(each.agent, each.model, (each.input, each.output, each.cache_read, each.cache_creation))
            for each in self.responses
        )

    @property
    def total(self) -> int:
        return sum(map(total, self.responses))

    @property
    def agents(self) -> dict[str, int]:
        """Return agent → tokens."""
        found: dict[str, int] = {}
        for one in self.counted:
            found[one.agent] = found.get(one.agent, 0) + sum(one.tokens)
        return found


def harvest(*lines: bytes, session: str = SESSION, now: int | None = None, **known: Any) -> Harvest:
    """Return what is found in lines of a session's transcript, of which this is known already."""
    file = TranscriptFile(1, "/transcript", 0, 0, 0, b"", "main-session", **known)
    found = Harvest(file, session, now_micros if now is None else lambda: now)
    for line in lines:
        found.add(line.removesuffix(b"\n"))
    return found


def size(copy: Copy) -> int:
    """Return all tokens of a copy's top level."""
    return copy.input + copy.output + copy.cache_read + copy.cache_creation


def replaced(writer: Transcript) -> None:
    """Replace a transcript by another file, which has one response of 7 tokens."""
    other = writer.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line(SESSION, "new", tokens=(7, 0, 0, 0))))
    other.replace(writer.path)
