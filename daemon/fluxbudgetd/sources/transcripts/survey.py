"""Where a session's transcripts are: one search of the directories in which they may be.

Symbolic links are followed (see `access`). A file is known by its real path, so it is read once, however
many paths lead to it.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping

from fluxbudgetd.sources.stamps import MISSING, UNSETTLED, PathStamp, directory_stamp, stamp, stamp_of
from fluxbudgetd.sources.transcripts import names
from fluxbudgetd.sources.transcripts.access import (
    Target,
    describe,
    follow,
    why_no_directory,
    why_no_file,
    why_not_named,
)
from fluxbudgetd.sources.transcripts.places import Places, Projects, projects, projects_directory
from fluxbudgetd.wire.text import shown_path

#: At most this many files of a session are read, from at most this many directories, nested this deep.
MAX_FILES = 200_000
MAX_DIRECTORIES = 20_000
MAX_DEPTH = 16

_GONE = (FileNotFoundError, NotADirectoryError)


class Survey:
    """The files found in Claude Code's directories.

    `files` maps the real path of each file to the agent's name according to the path. `stamps` has the stamp of every
    path whose change may mean something new, taken before the path was searched; `directories` are those to watch.
    `faults` says what could not be searched, `unfollowed` which transcripts are known but not read, `notes` what else
    was left out.
    """

    def __init__(self, places: Places) -> None:
        self.files: dict[str, str] = {}
        self.stamps: dict[str, PathStamp] = {}
        self.directories: dict[str, None] = {}
        self.faults: list[str] = []
        self.unfollowed: dict[str, None] = {}
        self.notes: dict[str, None] = {}
        self._places = places
        self._real_directories: dict[str, str] = {}
        self._linked: set[str] = set()
        # Why directories that may have files of the session could not be searched.
        self._closed: dict[str, None] = {}
        self._left_out = 0

    def search(self, session: str, named: str | None, known: Mapping[str, str]) -> None:
        """Find a session's files: the named one, the known ones (path → agent), and others in the same directories.

        A hook may name another session's file, so that session's sub-agents are found, too.
        """
        for path, agent in known.items():
            self._add(self._real(path), agent)
        mains = [self._real(path) for path, agent in known.items() if agent == names.MAIN]
        named = None if named is None else self._real(named)
        if named is not None and self._add_named(named):
            mains.append(named)
        stems = dict.fromkeys(os.path.basename(path).removesuffix(names.SUFFIX) for path in mains)
        name = names.session_name(session)
        if name is not None:
            stems = {name: None, **stems}
        found = [self._projects(root) for root in self._places.roots()]
        directories = {real: path for each in found for real, path in each.directories.items()}
        homes = {*map(os.path.dirname, mains), *self._homes(stems, directories)}
        self._search_beside(stems, homes)
        if not self.files:
            # The session's first file may appear in any project.
            for real, path in directories.items():
                self.stamps[path] = directory_stamp(path)
                self.directories[real] = None
            self._search_beside(stems, self._homes(stems, directories))
        self._note_refused(stems, found)
        if self._left_out:
            many = f"more than {MAX_FILES} files or {MAX_DIRECTORIES} directories"
            self.unfollowed[f"session {session}: {many}: {self._left_out} are not read"] = None

    def _projects(self, root: str) -> Projects:
        path = projects_directory(root)
        self.stamps[path] = directory_stamp(path)
        found = projects(root)
        if found.listed:
            self.directories[found.listed] = None
        if found.fault:
            self.faults.append(found.fault)
        return found

    def _homes(self, stems: Iterable[str], directories: Iterable[str]) -> set[str]:
        """Return the directories that have files of the session."""
        return {
            directory
            for directory in directories
            for stem in stems
            if self._is_there(os.path.join(directory, stem + names.SUFFIX))
            or self._is_there(os.path.join(directory, stem))
        }

    def _is_there(self, path: str) -> bool:
        try:
            os.lstat(path)
        except _GONE:
            return False
        except OSError as exc:
            self._closed[describe(os.path.dirname(path), exc)] = None
            return False
        return True

    def _note_refused(self, stems: Iterable[str], found: Iterable[Projects]) -> None:
        """Report what could not be searched: links that are not followed, and directories without permission.

        If files of the session were found elsewhere, there is no sign that it has more of them in such a directory.
        """
        (self.notes if self.files else self.unfollowed).update(self._closed)
        for each in found:
            for path, refusal in each.refused.items():
                if self._may_be_in(path, stems) if each.listed else not self.files:
                    self.unfollowed[refusal] = None

    def _may_be_in(self, project: str, stems: Iterable[str]) -> bool:
        for stem in stems:
            for name in (stem + names.SUFFIX, stem):
                try:
                    os.lstat(os.path.join(project, name))
                except PermissionError:
                    return not self.files
                except OSError:
                    continue
                return True
        return False

    def _search_beside(self, stems: Iterable[str], homes: Iterable[str]) -> None:
        for home in sorted(homes):
            self.directories[home] = None
            mains = [os.path.join(home, stem + names.SUFFIX) for stem in stems]
            for main in mains:
                self._add(main, names.MAIN)
            for stem in stems:
                self._search_sub_agents(os.path.join(home, stem))
            self._search_old_layout(stems, home, mains)

    def _search_sub_agents(self, own: str) -> None:
        """Search a session's directory, if there is one."""
        if self._is_there(own):
            if os.path.islink(own):
                target = self._followed(own, why_no_directory)
                if target is None:
                    return
                own = target.real
            self.directories[own] = None
        self._walk(os.path.join(own, "subagents"))

    def _search_old_layout(self, stems: Iterable[str], home: str, mains: Iterable[str]) -> None:
        layout = self._places.old_layout
        is_old = any(layout.has_written(main) for main in mains)
        if not is_old and not any(layout.agents(home, stem, is_old=False) for stem in stems):
            return
        self.stamps[home] = directory_stamp(home)
        for path in layout.unknown_in(home):
            self.stamps[path] = stamp(path)
        for stem in stems:
            for path in layout.agents(home, stem, is_old=True):
                self._add(path, names.plain_agent(path))
        for path in layout.unknown_in(home):
            self.stamps.setdefault(path, UNSETTLED)

    def _walk(self, top: str) -> None:
        pending = [(top, 0)]
        entered: set[tuple[int, int]] = set()
        while pending:
            directory, depth = pending.pop()
            for entry in self._listed(directory, entered):
                if names.is_sub_agents(entry.name):
                    self._add(entry.path, names.plain_agent(entry.path))
                elif _is_directory(entry):
                    if depth == MAX_DEPTH:
                        self.unfollowed[f"{shown_path(directory)}: nested too deeply, not read"] = None
                    elif len(entered) + len(pending) < MAX_DIRECTORIES:
                        pending.append((entry.path, depth + 1))
                    else:
                        self._left_out += 1

    def _listed(self, directory: str, entered: set[tuple[int, int]]) -> Iterator["os.DirEntry[str]"]:
        """Yield what is in a directory, with real paths; nothing if it was entered before."""
        self.stamps[directory] = directory_stamp(directory)
        real = directory
        if os.path.islink(directory):
            target = self._followed(directory, why_no_directory)
            if target is None:
                return
            real = target.real
        try:
            info = os.stat(real)
            if (info.st_dev, info.st_ino) in entered:
                return
            entered.add((info.st_dev, info.st_ino))
            with os.scandir(real) as entries:
                self.directories[real] = None
                yield from entries
        except FileNotFoundError:
            return
        except OSError as exc:
            self.faults.append(describe(directory, exc))

    def _add_named(self, path: str) -> bool:
        """Add the file that a hook has named, if there is one. Return True if the path may be followed."""
        refusal = why_not_named(path)
        if refusal is not None:
            self.stamps[path] = stamp(path)
            self.unfollowed[refusal] = None
            return False
        self._add(path, names.MAIN)
        return True

    def _add(self, path: str, agent: str) -> None:
        """Add a file if there is one. Opening it shows whether it is a regular file."""
        if path in self.stamps and path not in self._linked:
            return
        try:
            info = os.lstat(path)
        except _GONE:
            self.stamps[path] = MISSING
            return
        except OSError as exc:
            self.stamps[path] = stamp(path)
            self.faults.append(describe(path, exc))
            return
        if stat.S_ISLNK(info.st_mode):
            target = self._followed(path, why_no_file)
            if target is None and agent == names.MAIN and self.stamps[path] == MISSING:
                self.stamps[path] = UNSETTLED  # removing the broken link would not change its stamp
            if target is not None and target.real not in self.files:
                self._linked.add(target.real)
                self._found(target.real, agent, target.stamp)
        else:
            self._linked.discard(path)
            self._found(path, agent, stamp_of(info))

    def _found(self, path: str, agent: str, before: PathStamp) -> None:
        if path in self.files or len(self.files) < MAX_FILES:
            self.files[path] = agent
            self.stamps[path] = before
        else:
            self._left_out += 1

    def _followed(self, link: str, why_not: Callable[[os.stat_result], str | None]) -> Target | None:
        """Return what a symbolic link leads to; None if that may not be followed."""
        target = follow(link, why_not)
        self.stamps[link] = target.stamp
        if target.refusal:
            self.unfollowed[target.refusal] = None
            return None
        return target

    def _real(self, path: str) -> str:
        """Return a path with the symbolic links above the file resolved."""
        if not os.path.isabs(path):
            return path
        directory, name = os.path.split(path)
        real = self._real_directories.get(directory)
        if real is None:
            real = self._real_directories[directory] = os.path.realpath(directory)
        return os.path.join(real, name)


def _is_directory(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
