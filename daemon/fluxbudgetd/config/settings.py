"""The current configuration: files are read again when they change; a broken file changes nothing."""

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.config.budget_rules import BudgetRules, Demand
from fluxbudgetd.config.calibration import Calibration, load_calibration
from fluxbudgetd.config.flux_drive import ReviewBudget
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.locations import ClaudeDirectories
from fluxbudgetd.config.phase_costs import PhaseCosts
from fluxbudgetd.config.reading import FileStamp, file_stamp
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ConfigError
from fluxbudgetd.wire.messages import PhaseCalibration

log = structlog.get_logger()

T = TypeVar("T")

_HUNG_SECONDS = 0.05


class Fault(NamedTuple):
    """A problem with a file, and what to do."""

    what: str
    hint: str


def calibration_path(config_path: str) -> str:
    """Return the calibration's path, which is beside the configuration."""
    return os.path.join(os.path.dirname(config_path), "calibration.json")


class Settings:
    """config.toml and calibration.json: their last good contents, and their current faults."""

    def __init__(self, config_path: str, *, required: bool, claude_dirs: ClaudeDirectories) -> None:
        self.config_path = config_path
        self.calibration_path = calibration_path(config_path)
        self._changed: anyio.Event | None = None
        self._claude_dirs = claude_dirs
        self._config = _WatchedFile(config_path, partial(load_config, config_path, required=required), Config())
        self._calibration: _WatchedFile[Calibration | None] = _WatchedFile(
            self.calibration_path, partial(load_calibration, self.calibration_path), None
        )
        # Held by the threads, not by the requests that wait for them. If a file system does not answer, a request gives
        # up but its thread stays blocked; the next request must not block another.
        self.reading = threading.Lock()
        self._rules = BudgetRules()
        self._phase_costs = PhaseCosts()

    @property
    def config(self) -> Config:
        """Return the last good configuration."""
        return self._config.value

    @property
    def claude_dirs(self) -> tuple[str, ...]:
        """Return Claude Code's directories."""
        return self._claude_dirs.used(self.config.claude_dirs)

    @property
    def claude_dirs_are_chosen(self) -> bool:
        """Return True if the user has named them, so that they must exist."""
        return bool(self._claude_dirs.chosen(self.config.claude_dirs))

    @property
    def calibration(self) -> Calibration | None:
        """Return the last good calibration, or None."""
        return self._calibration.value

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Return the current faults of the two files."""
        return tuple(fault for fault in (self._config.fault, self._calibration.fault) if fault is not None)

    def load_first(self) -> None:
        """Read both files. Raise `ConfigError` if config.toml is broken; a broken calibration is a fault. Blocks."""
        config, calibration = self._config.read(), self._calibration.read()
        if isinstance(config.found, ConfigError):
            raise config.found
        self._config.take(config)
        self._calibration.take(calibration)

    def close(self) -> None:
        """End the threads that read budget files, without waiting for those that hang."""
        self._rules.close()
        self._phase_costs.close()

    async def refresh(self, deadline: float = math.inf, *, force: bool = False) -> bool:
        """Read the files that have changed, or with `force` both; return False if they could not be read in time.

        The limit is half of the time until the deadline (by the loop's clock), or 50 ms while an earlier call still
        hangs. On False nothing changes.
        """
        now = anyio.current_time()
        with anyio.CancelScope(deadline=now + (deadline - now) / 2):
            results = await anyio.to_thread.run_sync(self._read, force, abandon_on_cancel=True)
            if results is None:
                return False
            before = self.config
            self._config.take(results[0])
            self._calibration.take(results[1])
            if self.config != before and self._changed is not None:
                self._changed.set()
                self._changed = None
            return True
        return False

    async def changed(self, known: Config) -> Config:
        """Wait until the configuration differs from `known`, and return it."""
        while self.config == known:
            if self._changed is None:  # made here, because an event belongs to the loop
                self._changed = anyio.Event()
            await self._changed.wait()
        return self.config

    async def review_budget(self, project_dir: str | None, *, calibrated: bool = True) -> ReviewBudget:
        """Return the review budgets that apply in a project now, with or without the calibrated multiplier.

        Raises `ConfigError`. Waits until cancelled for a file system that does not answer.
        """
        return await self._rules.current(
            self.config.flux_drive.budget_file, self.claude_dirs, project_dir, self._multiplier if calibrated else None
        )

    async def demand(self, directories: Sequence[str]) -> Demand:
        """Return what the project files of these directories say about the enforcement of runs (see `BudgetRules`)."""
        return await self._rules.demand(directories)

    def last_review_budget(self, project_dir: str | None) -> ReviewBudget:
        """Return the last good review budgets of a project, without its file if that was never good."""
        return self._rules.last(project_dir)

    def prepare_review_budget(self, project_dir: str) -> None:
        """Begin to read the budget files that apply in a project if that has not been done yet; returns at once."""
        self._rules.prepare(self.config.flux_drive.budget_file, self.claude_dirs, project_dir)

    async def refresh_phase_costs(self, project_dir: str, deadline: float) -> None:
        """Read Clavain's calibration file of a project if it has changed, in half of the time until the deadline.

        If it cannot be read in time, or is invalid, the last good version still applies.
        """
        now = anyio.current_time()
        with anyio.CancelScope(deadline=now + (deadline - now) / 2):
            await self._phase_costs.refresh(project_dir)

    def phase_calibrations(self, project_dir: str) -> tuple[Mapping[str, PhaseCalibration], ...]:
        """Return what a project's phases have cost, as last read: from our calibration, then from Clavain's."""
        ours = {} if self.calibration is None else self.calibration.phases
        return ours, self._phase_costs.known(project_dir)

    @property
    def _multiplier(self) -> float | None:
        return None if self.calibration is None else self.calibration.slicing.multiplier

    def _read(self, force: bool) -> tuple["_Read[Config] | None", "_Read[Calibration | None] | None"] | None:
        if not self.reading.acquire(timeout=_HUNG_SECONDS):
            return None
        try:
            return self._config.read_if_changed(force=force), self._calibration.read_if_changed(force=force)
        finally:
            self.reading.release()


class _Read(NamedTuple, Generic[T]):
    """The result of reading a file once."""

    stamp: FileStamp | None
    found: T | ConfigError


class _WatchedFile(Generic[T]):
    """A file and its last good contents. `read` and `read_if_changed` block and change nothing; `take` applies."""

    def __init__(self, path: str, load: Callable[[], T], value: T) -> None:
        self.value = value
        self.error: ConfigError | None = None
        self._path = path
        self._load = load
        self._stamp: FileStamp | None = None

    @property
    def fault(self) -> Fault | None:
        """Return the file's current fault, or None."""
        return None if self.error is None else Fault(self.error.message, self.error.hint)

    def read_if_changed(self, *, force: bool) -> _Read[T] | None:
        """Read the file if it has changed, or may have."""
        now = file_stamp(self._path)
        return None if not force and now is not None and now == self._stamp else self.read()

    def read(self) -> _Read[T]:
        """Read the file."""
        # The stamp is taken first: if the file changes while it is read, its next stamp differs.
        now = file_stamp(self._path)
        try:
            return _Read(now, self._load())
        except ConfigError as exc:
            # The cause may disappear without a change of the file.
            return _Read(None, exc)

    def take(self, read: _Read[T] | None) -> None:
        """Apply what was read, and log changes."""
        if read is None:
            return
        self._stamp = read.stamp
        if isinstance(read.found, ConfigError):
            if self.error is None or self.error.message != read.found.message:
                log.error("configuration broken, keeping the last good one", what=read.found.message)
            self.error = read.found
        else:
            if self.error is not None or self.value != read.found:
                log.info("configuration reloaded", file=shown_file(self._path))
            self.value, self.error = read.found, None
