"""A reader that follows one session's transcripts as the daemon does."""

import os
from pathlib import Path

import msgspec

from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import TranscriptSource, merged
from harness.daemon import wait_for
from harness.transcripts import Counted, Transcript, assistant_line, encoded, recount

SESSION = "0b5ce9a2-2f6a-4f0e-9d3c-1f2e3d4c5b6a"
MIB = 1 << 20


class Reader:
    """Keeps the copies of responses that count (`merged`), without those that a reset has invalidated."""

    def __init__(self, claude_dir: Path, session: str = SESSION) -> None:
        self.claude_dir = claude_dir
        self.session = session
        self.source = TranscriptSource(str(claude_dir))
        self.kept: dict[int, tuple[Copy, ...]] = {}
        self.files: tuple[TranscriptFile, ...] = ()
        self.received = 0

    def read_once(self) -> TranscriptReading:
        """Take in one bounded reading."""
        reading = self.source.read(self.session)
        invalid = reading.reset or frozenset()
        self.kept = {
            name: tuple(copy for copy in copies if copy.file not in invalid) for name, copies in self.kept.items()
        }
        for copy in reading.copies:
            known = self.kept.get(copy.message, ())
            gone, new = merged(known, copy)
            self.kept[copy.message] = (*(one for one in known if one not in gone), *new)
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
        self.source = TranscriptSource(str(self.claude_dir))
        self.source.restore(self.session, files)

    @property
    def counted(self) -> list[Counted]:
        return sorted(
            Counted(copy.agent, copy.model, (copy.input, copy.output, copy.cache_read, copy.cache_creation))
            for copies in self.kept.values()
            for copy in copies
        )

    @property
    def total(self) -> int:
        return sum(copy.size for copies in self.kept.values() for copy in copies)

    @property
    def agents(self) -> dict[str, int]:
        """Return agent → tokens."""
        found: dict[str, int] = {}
        for one in self.counted:
            found[one.agent] = found.get(one.agent, 0) + sum(one.tokens)
        return found

    def recounted(self) -> list[Counted]:
        """Return what the current files contain, counted from their first byte."""
        paths = [Path(os.fsdecode(file.path.encode())) for file in self.files]
        return recount(
            {
                file.number: (path.read_bytes(), file.agent)
                for file, path in zip(self.files, paths, strict=True)
                if path.exists()
            }
        )


def replaced(writer: Transcript) -> None:
    """Replace a transcript by another file, which has one response of 7 tokens."""
    other = writer.path.with_suffix(".new")
    other.write_bytes(encoded(assistant_line(SESSION, "new", tokens=(7, 0, 0, 0))))
    other.replace(writer.path)
