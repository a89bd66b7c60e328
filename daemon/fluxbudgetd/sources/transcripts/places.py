"""Claude Code's directories, in which transcripts are."""

import os
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fluxbudgetd.sources.transcripts.access import describe, follow, why_no_directory
from fluxbudgetd.sources.transcripts.old_layout import OldLayout
from fluxbudgetd.wire.text import shown_path

#: At most this many directories are learned. A transcript in a further one is read, too, if a hook names it.
MOST_LEARNED = 64


class Problem(NamedTuple):
    """What is wrong with a place, and what to do."""

    what: str
    hint: str


class Places:
    """Claude Code's directories, which need not exist: those that are configured, and those learned from hooks.

    `generation` grows when they change. Several threads may use this, but only one worker thread at a time
    `old_layout`.
    """

    def __init__(self, configured: Iterable[str], *, are_chosen: bool) -> None:
        self.generation = 0
        self.old_layout = OldLayout()
        self._configured = tuple(configured)
        self._are_chosen = are_chosen
        self._learned: tuple[str, ...] = ()
        self._changing = threading.Lock()

    @property
    def shown(self) -> str:
        """The directories of the transcripts, as shown to people."""
        directories = dict.fromkeys((*self._configured, *self._learned))
        return ", ".join(shown_path(projects_directory(root)) for root in directories)

    @property
    def learned(self) -> tuple[str, ...]:
        """The directories that were learned."""
        return self._learned

    def configure(self, directories: Sequence[str], *, are_chosen: bool) -> None:
        """Replace the configured directories. If they are chosen, a missing one is a problem."""
        with self._changing:
            self._are_chosen = are_chosen
            if self._configured != tuple(directories):
                self._configured = tuple(directories)
                self.generation += 1

    def learn(self, directories: Iterable[str]) -> None:
        """Add directories."""
        with self._changing:
            together = tuple(dict.fromkeys((*self._learned, *directories)))[:MOST_LEARNED]
            if together != self._learned:
                self._learned = together
                self.generation += 1

    def make_room(self) -> None:
        """Forget the learned directories that do not exist now, if no more can be learned. For a worker thread."""
        if len(self._learned) < MOST_LEARNED:
            return
        existing = tuple(filter(os.path.isdir, self._learned))
        with self._changing:
            self._learned = existing

    def has(self, directory: str) -> bool:
        """Return True if the projects of a directory are those of a known one."""
        return os.path.realpath(projects_directory(directory)) in self._by_projects()

    def roots(self) -> Sequence[str]:
        """Return the directories. Of several with the same projects, only the first is returned."""
        return tuple(self._by_projects().values())

    def _by_projects(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for root in (*self._configured, *self._learned):
            found.setdefault(os.path.realpath(projects_directory(root)), root)
        return found

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with the directories. For a worker thread."""
        missing = self._missing() if self._are_chosen else ()
        refusals = (refusal for root in self.roots() for refusal in projects(root).refused.values())
        return (
            *missing,
            *(Problem(f"not followed: {refusal}", "make it point to a directory of yours") for refusal in refusals),
            *(
                Problem(f"not counted: {shown_path(path)}: its lines name no session", "move or delete it")
                for path in self.old_layout.unknown
            ),
        )

    def _missing(self) -> Iterator[Problem]:
        for root in self._configured:
            try:
                what = "" if stat.S_ISDIR(os.stat(root).st_mode) else f"{shown_path(root)}: is not a directory"
            except OSError as exc:
                what = describe(root, exc)
            if what:
                yield Problem(
                    f"Claude directory {what}",
                    "create it, or correct --claude-dir, claude_dirs in config.toml, or $CLAUDE_CONFIG_DIR",
                )


class Projects(NamedTuple):
    """The directories of a Claude directory's projects.

    `directories` maps real paths to the paths that lead there. `refused` says why links are not followed, by path.
    `listed` is the real path of the directory that has them, empty if there is none. `fault` says why it cannot be
    listed.
    """

    directories: dict[str, str]
    refused: dict[str, str]
    listed: str = ""
    fault: str = ""


def projects(root: str) -> Projects:
    """Return the projects in a Claude directory."""
    found = Projects({}, {})
    path = projects_directory(root)
    if os.path.islink(path) or (os.path.islink(root) and os.path.exists(path)):
        target = follow(path, why_no_directory)
        if target.refusal:
            return Projects({}, {path: target.refusal})
    path = os.path.realpath(path)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _add_link(found, entry.path)
                elif entry.is_dir():
                    found.directories.setdefault(entry.path, entry.path)
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as exc:
        return found._replace(fault=describe(path, exc))
    return found._replace(listed=path)


def projects_directory(root: str) -> str:
    """Return the directory that has one directory for each project."""
    return os.path.join(root, "projects")


def _add_link(found: Projects, path: str) -> None:
    target = follow(path, why_no_directory)
    if not target.refusal:
        found.directories.setdefault(target.real, path)
    elif not target.mode or stat.S_ISDIR(target.mode):  # a file is not meant to be a project
        found.refused[path] = target.refusal
