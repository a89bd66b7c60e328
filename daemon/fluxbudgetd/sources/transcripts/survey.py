"""Where a session's transcripts are: one search of the directories in which they may be.

Symbolic links to directories are not followed. A symbolic link to a file counts if its target is below the Claude
directory, and then under the target's path.
"""

import os
import stat
from collections.abc import Iterator, Mapping

from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.stamps import PathStamp, directory_stamp, stamp
from fluxbudgetd.wire.text import shown_path

#: At most this many files of a session are read, from as many directories, nested this deep.
MAX_FILES = 10_000
MAX_DEPTH = 16

_GONE = (FileNotFoundError, NotADirectoryError)


def is_below(path: str, root: str) -> bool:
    """Return True if a real path is below a real directory."""
    return path.startswith(root.rstrip("/") + "/")


def projects_directory(root: str) -> str:
    """Return the directory that has one directory for each project."""
    return os.path.join(root, "projects")


class Survey:
    """The files found below `root`, the Claude directory's real path.

    `files` maps each path to the agent's name according to the path. `stamps` has the stamp of every path whose change
    may mean something new, taken before the path was searched; `directories` are those to watch. `faults` says what
    could not be searched, `notes` what was left out.
    """

    def __init__(self, root: str) -> None:
        self.files: dict[str, str] = {}
        self.stamps: dict[str, PathStamp] = {}
        self.directories: dict[str, None] = {}
        self.faults: list[str] = []
        self.notes: dict[str, None] = {}
        self._root = root
        self._left_out = 0

    def search(self, session: str, named: str | None, known: Mapping[str, str]) -> None:
        """Find a session's files: the named one, the known ones (path → agent), and others in the same directories."""
        known = {path: agent for path, agent in known.items() if is_below(path, self._root)}
        for path, agent in known.items():
            self._add(path, agent, known=True)
        name = names.session_name(session)
        if name is None:
            return
        mains = [path for path, agent in known.items() if agent == names.MAIN]
        if named is not None:
            mains.append(named)
            self._add(named, names.MAIN)
        projects = [entry.path for entry in self._listed(projects_directory(self._root)) if _is_directory(entry)]
        self._search_beside(name, {*map(os.path.dirname, mains), *self._homes(name, projects)})
        if not self.files:
            # The session's first file may appear in any project.
            for directory in projects:
                self.stamps[directory] = directory_stamp(directory)
                self.directories[directory] = None
            self._search_beside(name, self._homes(name, projects))
        if self._left_out:
            self.notes[f"more than {MAX_FILES} files or directories: {self._left_out} are left out"] = None

    def _homes(self, name: str, projects: list[str]) -> set[str]:
        """Return the projects that have files of the session."""
        return {
            directory
            for directory in projects
            if self._is_there(os.path.join(directory, name + names.SUFFIX))
            or self._is_there(os.path.join(directory, name))
        }

    def _is_there(self, path: str) -> bool:
        try:
            os.lstat(path)
        except _GONE:
            return False
        except OSError as exc:
            # Only a note: there is no sign that the session has files there.
            self.notes[describe(os.path.dirname(path), exc)] = None
            return False
        return True

    def _search_beside(self, name: str, homes: set[str]) -> None:
        for home in sorted(homes):
            self.directories[home] = None
            self._add(os.path.join(home, name + names.SUFFIX), names.MAIN)
            own = os.path.join(home, name)
            if self._is_there(own):
                self.directories[own] = None
            if os.path.islink(own):
                self._note_link(own)
            else:
                self._walk(os.path.join(own, "subagents"))

    def _walk(self, top: str) -> None:
        pending = [(top, 0)]
        while pending:
            directory, depth = pending.pop()
            for entry in self._listed(directory):
                if names.is_sub_agents(entry.name):
                    self._add(entry.path, names.plain_agent(entry.path))
                elif _is_directory(entry):
                    if depth == MAX_DEPTH:
                        self.notes[f"{shown_path(directory)}: nested too deeply, not read"] = None
                    elif len(self.stamps) + len(pending) < 2 * MAX_FILES:
                        pending.append((entry.path, depth + 1))
                    else:
                        self._left_out += 1

    def _listed(self, directory: str) -> Iterator["os.DirEntry[str]"]:
        self.stamps[directory] = directory_stamp(directory)
        if os.path.islink(directory):
            self._note_link(directory)
            return
        try:
            with os.scandir(directory) as entries:
                self.directories[directory] = None
                yield from entries
        except FileNotFoundError:
            return
        except OSError as exc:
            self.faults.append(describe(directory, exc))

    def _add(self, path: str, agent: str, *, known: bool = False) -> None:
        """Add a file if there is one. Opening it shows whether it is a regular file."""
        self.stamps[path] = before = stamp(path)
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except _GONE:
            return
        except OSError as exc:
            self.faults.append(describe(path, exc))
            return
        if is_link:
            if known:
                return  # the file itself is gone
            target = os.path.realpath(path)
            if not is_below(target, self._root):
                self.notes[f"{shown_path(path)}: leads outside the Claude directory"] = None
                return
            if len(before) <= 1:
                self.notes[f"{shown_path(path)}: broken symbolic link"] = None
                return
            path, self.stamps[target] = target, before
        if path not in self.files and len(self.files) == MAX_FILES:
            self._left_out += 1
            del self.stamps[path]
        elif not (is_link and path in self.files):  # a file's own name takes precedence over a link's
            self.files[path] = agent

    def _note_link(self, path: str) -> None:
        self.notes[f"{shown_path(path)}: a symbolic link to a directory, which is not followed"] = None


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def describe(path: str, error: OSError) -> str:
    """Return an error's text for people."""
    return f"{shown_path(path)}: {error.strerror or error}"
