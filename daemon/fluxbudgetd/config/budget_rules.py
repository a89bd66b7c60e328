"""The review budgets that apply in a project, made from its files and kept until one of them changes."""

import os
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import anyio.to_thread

from fluxbudgetd.config.budget_files import BudgetFile, BudgetFiles, Content
from fluxbudgetd.config.flux_drive import (
    LARGEST_OF_PROJECT,
    ReviewBudget,
    budget_file,
    laid_over,
    project_file,
    with_multiplier,
)
from fluxbudgetd.config.reading import LARGEST
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.text import shown_path

# How many projects are remembered.
_MOST_PROJECTS = 256


class _Parts(NamedTuple):
    """What a project's review budgets are made from, lowest precedence first."""

    plugin: Content
    multiplier: float | None
    project: Content | None


class Demand(NamedTuple):
    """What project files say about the enforcement of runs that start below them.

    `hard_by` is the file that demands hard enforcement, None if none does. `fault` says why a file could not be read.
    """

    hard_by: str | None = None
    fault: str | None = None


class BudgetRules:
    """The last good rules of each project. Belongs to one event loop."""

    def __init__(self) -> None:
        self._files = BudgetFiles()
        self._known: dict[str | None, tuple[_Parts, ReviewBudget]] = {}

    def close(self) -> None:
        """End the threads that read the files, without waiting for those that hang."""
        self._files.close()

    async def current(
        self, chosen: str, claude_dirs: Sequence[str], project_dir: str | None, multiplier: float | None
    ) -> ReviewBudget:
        """Return the rules as they are now. `chosen` is the configured file, or empty for the plugin's.

        Raises as `BudgetFiles.content` does.
        """
        plugin = await self._files.content(_plugin(chosen, claude_dirs))
        rules = await self._made(None, _Parts(plugin, multiplier, None))
        if project_dir is None:
            return rules
        project = await self._files.content(_project(project_dir))
        return await self._made(project_dir, _Parts(plugin, multiplier, project))

    async def demand(self, directories: Sequence[str]) -> Demand:
        """Return what the project files of these directories say about enforcement, as they are now.

        Any of them may demand hard enforcement, and no other can override that. Waits until cancelled for a file system
        that does not answer.
        """
        fault = None
        for directory in await anyio.to_thread.run_sync(_with_file, directories, abandon_on_cancel=True):
            try:
                content = await self._files.content(_project(directory))
            except ConfigError as exc:
                fault = fault or exc.message
                continue
            if content.values is not None and content.values.get("enforcement") == "hard":
                return Demand(hard_by=shown_path(content.path))
        return Demand(fault=fault)

    def last(self, project_dir: str | None) -> ReviewBudget:
        """Return the last good rules of a project, otherwise those outside of projects, otherwise the built-in ones."""
        found = self._known.get(project_dir) or self._known.get(None)
        return ReviewBudget() if found is None else found[1]

    def prepare(self, chosen: str, claude_dirs: Sequence[str], project_dir: str) -> None:
        """Begin to read files that have not been read yet; returns at once."""
        self._files.prepare(_plugin(chosen, claude_dirs))
        self._files.prepare(_project(project_dir))

    async def _made(self, project_dir: str | None, parts: _Parts) -> ReviewBudget:
        known = self._known.get(project_dir)
        if known is None or known[0] != parts:
            # Thousands of names take milliseconds.
            known = parts, await anyio.to_thread.run_sync(_make, parts, abandon_on_cancel=True)
        self._known.pop(project_dir, None)
        self._known[project_dir] = known  # the last in order is the one used last
        if len(self._known) > _MOST_PROJECTS:
            del self._known[next(name for name in self._known if name is not None)]
        return known[1]


def _make(parts: _Parts) -> ReviewBudget:
    rules = with_multiplier(laid_over(ReviewBudget(), parts.plugin.values, parts.plugin.path), parts.multiplier)
    return rules if parts.project is None else laid_over(rules, parts.project.values, parts.project.path)


def _with_file(directories: Sequence[str]) -> list[str]:
    """Return those of these directories that have a project file of this user's or root's. Blocks."""
    return [directory for directory in directories if _is_trusted(project_file(directory))]


def _is_trusted(path: str) -> bool:
    try:
        return os.stat(path).st_uid in (0, os.geteuid())
    except (OSError, ValueError):
        return False


def _plugin(chosen: str, claude_dirs: Sequence[str]) -> BudgetFile:
    return BudgetFile((chosen, *claude_dirs), partial(budget_file, chosen, claude_dirs), LARGEST)


def _project(project_dir: str) -> BudgetFile:
    path = project_file(project_dir)
    return BudgetFile(path, lambda: path, LARGEST_OF_PROJECT)
