"""Clavain's calibration file: what a project's sprints have cost by phase.

`PROJECT/.clavain/phase-cost-calibration.json` holds `{"phases": {"executing": {"runs", "input_tokens",
"output_tokens"}}}`; the tokens are means per run. The file is in the project, so it may be malicious: it must be small,
a slow file system delays only its own project, and entries that are not counts are ignored. A broken file changes
nothing.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import anyio
import msgspec
import structlog

from fluxbudgetd.config.reading import FileStamp, file_stamp, read_text
from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.messages import MAX_TOKENS, PhaseCalibration, Spread

log = structlog.get_logger()

_MOST_BYTES = 64 << 10
# How many projects are remembered, and how many reads may hang before others have to wait.
_MOST_PROJECTS = 256
_MOST_THREADS = 4

_NONE: Mapping[str, PhaseCalibration] = {}


class _Found(NamedTuple):
    """The last good content of a project's file, the file's stamp, and what is wrong with it now (None: nothing)."""

    costs: Mapping[str, PhaseCalibration] = _NONE
    stamp: FileStamp | None = None
    problem: str | None = None


class PhaseCosts:
    """The calibration files of all projects that were asked for. Belongs to one event loop."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}
        self._reading: dict[str, anyio.Event] = {}
        self._threads = ThreadPoolExecutor(_MOST_THREADS, "phase-costs")

    def close(self) -> None:
        """End the threads, without waiting for those that hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def known(self, project_dir: str) -> Mapping[str, PhaseCalibration]:
        """Return a project's phase costs as last read."""
        return self._found.get(project_dir, _Found()).costs

    async def refresh(self, project_dir: str) -> None:
        """Read a project's file if it has changed. If this is cancelled, the reading continues."""
        if not project_dir:
            return
        read = self._reading.get(project_dir)
        if read is None:
            read = self._reading[project_dir] = anyio.Event()
            before = self._found.get(project_dir, _Found())
            future = asyncio.get_running_loop().run_in_executor(self._threads, _read, project_dir, before)
            future.add_done_callback(partial(self._take, project_dir))
        await read.wait()

    def _take(self, project_dir: str, done: "asyncio.Future[_Found]") -> None:
        self._reading.pop(project_dir).set()
        if done.cancelled():  # by `close`
            return
        found, before = done.result(), self._found.pop(project_dir, _Found())
        if found.problem is not None and found.problem != before.problem:
            log.warning("phase costs are not used", what=found.problem)
        self._found[project_dir] = found  # the last in order is the one read last
        if len(self._found) > _MOST_PROJECTS:
            del self._found[next(iter(self._found))]


def _read(project_dir: str, before: _Found) -> _Found:
    """Read a project's file if it has changed. Blocks; never raises."""
    directory = os.path.join(project_dir, ".clavain")
    path = os.path.join(directory, "phase-cost-calibration.json")
    stamp = file_stamp(path)
    if stamp is not None and stamp == before.stamp:
        return before
    try:
        if stamp != () and not stat.S_ISDIR(os.lstat(directory).st_mode):
            return before._replace(problem=f"{shown_file(directory)} is a symlink")
        text = read_text(path, _MOST_BYTES)
        return _Found(_NONE if text is None else _parsed(text, path), stamp)
    except (ConfigError, OSError, ValueError) as exc:
        # Without a stamp, the file is read again next time: the cause may go away without a change of the file.
        return before._replace(stamp=None, problem=str(exc))


def _parsed(text: str, path: str) -> dict[str, PhaseCalibration]:
    try:
        content = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ConfigError(f"{shown_file(path)}: {exc}", "") from exc
    phases = content.get("phases") if isinstance(content, dict) else None
    if not isinstance(phases, dict):
        raise ConfigError(f"{shown_file(path)}: it has no object 'phases'", "")
    return {name: cost for name, entry in phases.items() if (cost := _cost(entry)) is not None}


def _cost(entry: object) -> PhaseCalibration | None:
    """Return a phase's cost; None if a count is missing or invalid."""
    counts = [entry.get(key) for key in ("runs", "input_tokens", "output_tokens")] if isinstance(entry, dict) else []
    whole = [count for count in counts if type(count) is int and 0 <= count <= MAX_TOKENS]
    if len(whole) != 3 or not 0 < whole[1] + whole[2] <= MAX_TOKENS:  # noqa: PLR2004  the three keys above
        return None
    # The file does not say how many cached tokens were used.
    mean = Spread(mean=whole[1] + whole[2], p50=whole[1] + whole[2], p90=whole[1] + whole[2])
    return PhaseCalibration(billing=mean, total=mean, sample_size=whole[0])
