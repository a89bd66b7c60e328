"""Find and read what is new in sessions' transcripts.

Two threads use a source. The event loop calls `changed`, `restore` and `forget`; one worker thread at a time calls
`read`, `name` and `problems`. What is known of a session is never changed, only replaced as a whole.
"""

import os
import stat
import threading
from collections.abc import Iterable, Sequence

from fluxbudgetd.errors import BadInputError
from fluxbudgetd.model import Copy, TranscriptFile, TranscriptReading
from fluxbudgetd.sources.stamps import UNSETTLED, stamp
from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.access import why_not_named
from fluxbudgetd.sources.transcripts.copied import last_copies
from fluxbudgetd.sources.transcripts.places import Places, Problem
from fluxbudgetd.sources.transcripts.reading import KnownSession, read_session, restored_session
from fluxbudgetd.wire.text import fold, unfold


class TranscriptSource:
    """The transcripts in Claude Code's directories, which need not exist.

    If the directories `are_chosen` by the user, a missing one is a problem.
    """

    def __init__(self, directories: Iterable[str], *, are_chosen: bool = False) -> None:
        self._places = Places(directories, are_chosen=are_chosen)
        self._sessions: dict[str, KnownSession] = {}
        # The generation of the places at each session's last reading.
        self._searched: dict[str, int] = {}
        self._swap = threading.Lock()  # never held over a system call
        self._working = threading.Lock()

    @property
    def path(self) -> str:
        """The directories of the transcripts, as shown to people."""
        return self._places.shown

    @property
    def learned(self) -> tuple[str, ...]:
        """The Claude directories that were learned from hooks."""
        return tuple(fold(os.fsencode(path)) for path in self._places.learned)

    def configure(self, directories: Sequence[str], *, are_chosen: bool) -> None:
        """Replace the configured directories; learned ones stay."""
        self._places.configure(directories, are_chosen=are_chosen)

    def learn(self, directories: Iterable[str]) -> None:
        """Search these directories, too, as from `learned`."""
        self._places.learn(os.fsdecode(unfold(path)) for path in directories)

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with the directories. For a worker thread."""
        with self._working:
            return self._places.problems()

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

    def name(self, session: str, path: str, *, even_if_refused: bool = False) -> str:
        """Set the path of a session's main file, as named by a hook; return it with links to directories resolved.

        If the path shows another Claude directory of this user, that is searched from now on. If the file exists and
        may not be followed, this raises `BadInputError`, or with `even_if_refused` each reading reports it. For a
        worker thread.
        """
        with self._working:
            raw = _path_of(path)
            directory, name = os.path.split(raw)
            real = os.path.join(os.path.realpath(directory), name) if os.path.isabs(raw) else raw
            refusal = why_not_named(real)
            if refusal is not None and not even_if_refused:
                raise BadInputError(refusal, f"a transcript is a file of yours called *{names.SUFFIX}")
            self._learn_from(raw)
            with self._swap:
                known = self._sessions.get(session, KnownSession())
                stamps = known.stamps
                if stamps is not None and real not in stamps:
                    stamps = {**stamps, real: UNSETTLED}
                self._sessions[session] = known._replace(named=real, stamps=stamps)
            return fold(os.fsencode(real))

    def last_copies(self, path: str, session: str) -> list[Copy]:
        """Return the last copies of responses in a transcript, oldest first. For any worker thread."""
        try:
            return last_copies(_path_of(path), session)
        except BadInputError:
            return []

    def learn_from(self, path: str) -> None:
        """From now on, search the Claude directory that a transcript's path shows, if it is the user's.

        Raises `BadInputError` for what is not a path. For a worker thread.
        """
        with self._working:
            self._learn_from(_path_of(path))

    def _learn_from(self, path: str) -> None:
        root = names.claude_directory(path)
        if root is not None and _is_own_directory(root) and not self._places.has(root):
            self._places.make_room()
            self._places.learn([root])

    def changed(self, session: str) -> bool:
        """Return True if there may be something new since the session's last reading.

        A reading that begins after this call includes everything written before it. This costs one `stat` for each file
        and directory of the session.
        """
        known = self._sessions.get(session)
        if known is None or known.stamps is None or self._searched.get(session) != self._places.generation:
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
            generation = self._places.generation
            after, reading = read_session(self._places, session, before)
            with self._swap:
                # If the session was forgotten or restored meanwhile, discard this reading.
                if self._sessions.get(session) is before:
                    self._sessions[session] = after
                    self._searched[session] = generation
        return reading

    def forget(self, session: str) -> None:
        """Drop what is known of a session."""
        with self._swap:
            self._sessions.pop(session, None)
            self._searched.pop(session, None)

    def directories(self, session: str) -> tuple[str, ...]:
        """Return the directories in which the session's files may change, as of its last reading."""
        known = self._sessions.get(session)
        return () if known is None else known.directories


def _path_of(text: str) -> str:
    """Return the path that a text represents; raises `BadInputError`."""
    try:
        path = os.fsdecode(unfold(text))
    except ValueError as exc:
        raise BadInputError(f"{text!r} is not a path: {exc}", "give the path of a transcript") from exc
    if "\0" in path:
        raise BadInputError(f"{text!r} is not a path: it contains a NUL", "give the path of a transcript")
    return path


def _is_own_directory(path: str) -> bool:
    try:
        info = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
