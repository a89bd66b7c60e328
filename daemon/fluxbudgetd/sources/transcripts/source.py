"""The transcripts of sessions: check for anything new, and read it.

Two threads use a source. The event loop calls `changed`, `restore` and `forget`; one worker thread at a time calls
`read` and `name`. What is known of a session is never changed, only replaced as a whole.
"""

import os
import threading
from collections.abc import Sequence

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import TranscriptFile, TranscriptReading
from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.reading import KnownSession, read_session, restored_session
from fluxbudgetd.sources.transcripts.stamps import UNSETTLED, stamp
from fluxbudgetd.sources.transcripts.survey import is_below
from fluxbudgetd.wire.text import fold, shown_path, unfold


class TranscriptSource:
    """The transcripts below one Claude directory, which need not exist."""

    def __init__(self, claude_dir: str) -> None:
        self._claude_dir = claude_dir
        self._sessions: dict[str, KnownSession] = {}
        self._swap = threading.Lock()  # never held over a system call
        self._working = threading.Lock()

    @property
    def path(self) -> str:
        """The directory of the transcripts, as shown to people."""
        return shown_path(os.path.join(self._claude_dir, "projects"))

    def path_count(self, session: str) -> int:
        """Return how many paths `changed` compares."""
        known = self._sessions.get(session)
        return 0 if known is None or known.stamps is None else len(known.stamps)

    def restore(self, session: str, files: Sequence[TranscriptFile]) -> None:
        """Continue reading a session's files from these positions.

        Call it before the first reading, or later to discard what was read after these positions.
        """
        with self._swap:
            known = self._sessions.get(session)
            self._sessions[session] = restored_session(None if known is None else known.named, files)

    def name(self, session: str, path: str) -> str:
        """Set the path of a session's main file, as named by a hook; return its real path. For a worker thread.

        Raises `BadInputError` unless it is a transcript below the Claude directory.
        """
        with self._working:
            real = self._real(path)
            with self._swap:
                known = self._sessions.get(session, KnownSession())
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
        """Return True if there may be something new since the session's last reading.

        A reading that begins after this call includes everything written before it. This costs one `stat` for each file
        and directory of the session.
        """
        known = self._sessions.get(session)
        if known is None or known.stamps is None:
            return True
        for path, before in known.stamps.items():  # noqa: SIM110  each request runs this; a generator takes longer
            if stamp(path) != before:
                return True
        return False

    def read(self, session: str) -> TranscriptReading:
        """Read what is new; never raises because of what files are or contain. For a worker thread."""
        with self._working:
            with self._swap:
                before = self._sessions.setdefault(session, KnownSession())
            after, reading = read_session(os.path.realpath(self._claude_dir), session, before)
            with self._swap:
                # If the session was forgotten or restored meanwhile, discard this reading.
                if self._sessions.get(session) is before:
                    self._sessions[session] = after
        return reading

    def forget(self, session: str) -> None:
        """Drop what is known of a session."""
        with self._swap:
            self._sessions.pop(session, None)

    def directories(self, session: str) -> tuple[str, ...]:
        """Return the directories in which the session's files may change, as of its last reading."""
        known = self._sessions.get(session)
        return () if known is None else known.directories
