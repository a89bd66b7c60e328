"""Following the transcripts of sessions: what is new in them, and whether anything is.

Two threads use a source. The event loop asks `changed`, and says what it knows (`restore`) and what it no longer wants
(`forget`). One worker thread at a time calls `read` and `name`. What is remembered of a session is never changed, only
replaced as a whole.
"""

import os
import threading
from collections.abc import Sequence

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.look import Memory, look, remembered
from fluxbudgetd.sources.transcripts.stamps import UNSETTLED, stamp
from fluxbudgetd.sources.transcripts.survey import is_below
from fluxbudgetd.wire.text import fold, shown_path, unfold


class TranscriptSource:
    """The transcripts below one Claude directory, which need not exist."""

    def __init__(self, claude_dir: str) -> None:
        self._claude_dir = claude_dir
        self._sessions: dict[str, Memory] = {}
        self._swap = threading.Lock()  # never held over a system call
        self._working = threading.Lock()

    @property
    def path(self) -> str:
        """Return where the transcripts are, for people."""
        return shown_path(os.path.join(self._claude_dir, "projects"))

    def path_count(self, session: str) -> int:
        """Return how many paths `changed` looks at."""
        known = self._sessions.get(session)
        return 0 if known is None or known.stamps is None else len(known.stamps)

    def restore(self, session: str, files: Sequence[TranscriptFile]) -> None:
        """Take up a session where it was left: these files are read on from these positions.

        To be called before its first look; later, to go back to what was kept of a reading.
        """
        with self._swap:
            known = self._sessions.get(session)
            self._sessions[session] = remembered(None if known is None else known.named, files)

    def name(self, session: str, path: str) -> str:
        """Take the path of a session's main file as a hook gives it; returns where it leads. For a worker thread.

        Raises `BadInputError` for what is no transcript below the Claude directory.
        """
        with self._working:
            real = self._real(path)
            with self._swap:
                known = self._sessions.get(session, Memory())
                stamps = known.stamps
                if stamps is not None and real not in stamps:
                    stamps = {**stamps, real: UNSETTLED}
                self._sessions[session] = known._replace(named=real, stamps=stamps)
            return fold(os.fsencode(real))

    def _real(self, path: str) -> str:
        try:
            raw = os.fsdecode(unfold(path))
            real, root = os.path.realpath(raw), os.path.realpath(self._claude_dir)
        except ValueError as exc:
            raise BadInputError(f"{path!r} is not a path: {exc}", "give the path of a transcript") from exc
        if not raw.endswith(names.SUFFIX):
            raise BadInputError(f"{path} is not a transcript", f"a transcript is called *{names.SUFFIX}")
        if not os.path.isabs(raw) or not is_below(real, root):
            raise BadInputError(
                f"{path} leads outside the Claude directory",
                "start fluxbudgetd with the --claude-dir that Claude Code uses",
            )
        return real

    def changed(self, session: str) -> bool:
        """Tell whether there may be anything that the session's last reading did not see.

        A reading that begins after this call shows whatever was there before it. One `stat` for each file and directory
        of the session, no more.
        """
        known = self._sessions.get(session)
        if known is None or known.stamps is None:
            return True
        return any(stamp(path) != before for path, before in known.stamps.items())

    def read(self, session: str) -> TranscriptReading:
        """Return what has come since the last reading; never raises for what files are or hold. For a worker thread."""
        with self._working:
            with self._swap:
                before = self._sessions.setdefault(session, Memory())
            after, reading = look(os.path.realpath(self._claude_dir), session, before)
            with self._swap:
                # Whoever has forgotten or restored the session meanwhile wants nothing of this look to be remembered.
                if self._sessions.get(session) is before:
                    self._sessions[session] = after
        return reading

    def forget(self, session: str) -> None:
        """Let go of a session."""
        with self._swap:
            self._sessions.pop(session, None)

    def directories(self, session: str) -> tuple[str, ...]:
        """Return the directories in which something may happen to the session, as its last reading found them."""
        known = self._sessions.get(session)
        return () if known is None else known.directories
