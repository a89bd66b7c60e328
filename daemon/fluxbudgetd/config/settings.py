"""The configuration as it is now: files are looked at when they are needed, and a broken one changes nothing."""

import math
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.config.calibration import Calibration, load_calibration
from fluxbudgetd.config.flux_drive import ReviewBudget, budget_file, load_review_budget
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.reading import Mark, mark
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.shown import shown_file
from fluxbudgetd.errors import ConfigError, RequestTimeoutError

log = structlog.get_logger()

T = TypeVar("T")

# A project in a file system that does not answer keeps its thread; so many of them leave the others theirs.
_REVIEW_THREADS = 8
_HUNG_SECONDS = 0.05


class Fault(NamedTuple):
    """What is wrong with a file now, and what to do."""

    what: str
    hint: str


def calibration_path(config_path: str) -> str:
    """Return where the calibration is: beside the configuration."""
    return os.path.join(os.path.dirname(config_path), "calibration.json")


class Settings:
    """config.toml and calibration.json: what they last said that was right, and what is wrong with them now."""

    def __init__(self, config_path: str, *, required: bool, claude_dir: str) -> None:
        self.config_path = config_path
        self.calibration_path = calibration_path(config_path)
        self._changed: anyio.Event | None = None
        self._claude_dir = claude_dir
        self._config = _Followed(config_path, partial(load_config, config_path, required=required), Config())
        self._calibration: _Followed[Calibration | None] = _Followed(
            self.calibration_path, partial(load_calibration, self.calibration_path), None
        )
        # Held by threads, not by those who wait for them: whoever gives up on a file system that does not answer leaves
        # its thread behind, and the next one must not add another.
        self._looking = threading.Lock()
        self._reviewing = threading.BoundedSemaphore(_REVIEW_THREADS)

    @property
    def config(self) -> Config:
        """Return the last good configuration."""
        return self._config.value

    @property
    def calibration(self) -> Calibration | None:
        """Return the last good calibration; None when there is none."""
        return self._calibration.value

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Return what is wrong with the two files now."""
        return tuple(fault for fault in (self._config.fault, self._calibration.fault) if fault is not None)

    def load_first(self) -> None:
        """Read both files; raises `ConfigError` for config.toml, while a broken calibration is a fault. It blocks."""
        config, calibration = self._config.look(), self._calibration.look()
        if isinstance(config.found, ConfigError):
            raise config.found
        self._config.take(config)
        self._calibration.take(calibration)

    async def refresh(self, deadline: float = math.inf, *, force: bool = False) -> bool:
        """Read what has changed since the last look, or with `force` everything; tells whether that was possible.

        A file system that has not answered in half of the time until the deadline (of the loop's clock), or since an
        earlier look, leaves everything as it was.
        """
        now = anyio.current_time()
        with anyio.CancelScope(deadline=now + (deadline - now) / 2):
            looks = await anyio.to_thread.run_sync(self._look, force, abandon_on_cancel=True)
            if looks is None:
                return False
            before = self.config
            self._config.take(looks[0])
            self._calibration.take(looks[1])
            if self.config != before and self._changed is not None:
                self._changed.set()
                self._changed = None
            return True
        return False

    async def changed(self, known: Config) -> Config:
        """Wait until the configuration is another one than `known`, and return it."""
        while self.config == known:
            if self._changed is None:  # made here, because an event belongs to the loop
                self._changed = anyio.Event()
            await self._changed.wait()
        return self.config

    async def review_budget(self, project_dir: str | None, *, calibrated: bool = True) -> ReviewBudget:
        """Return the review budgets that hold in a project now (without what calibration says, if so asked).

        Raises `ConfigError`, or `RequestTimeoutError` when so many files do not answer that this one is not tried.
        """
        slicing = None if self.calibration is None or not calibrated else self.calibration.slicing.multiplier
        return await anyio.to_thread.run_sync(
            self._review_budget, self.config, project_dir, slicing, abandon_on_cancel=True
        )

    def _look(self, force: bool) -> tuple["_Look[Config] | None", "_Look[Calibration | None] | None"] | None:
        if not self._looking.acquire(timeout=_HUNG_SECONDS):
            return None
        try:
            return self._config.look_again(force=force), self._calibration.look_again(force=force)
        finally:
            self._looking.release()

    def _review_budget(self, config: Config, project_dir: str | None, slicing: float | None) -> ReviewBudget:
        if not self._reviewing.acquire(timeout=_HUNG_SECONDS):
            raise RequestTimeoutError(
                "flux-drive's budget files do not answer", "is their file system reachable? ask again when it is"
            )
        try:
            return load_review_budget(
                budget_file(config.flux_drive.budget_file, self._claude_dir), project_dir, slicing
            )
        finally:
            self._reviewing.release()


class _Look(NamedTuple, Generic[T]):
    """What one look at a file gave."""

    mark: Mark | None
    found: T | ConfigError


class _Followed(Generic[T]):
    """A file, and what it last said that was right. Looks block and change nothing."""

    def __init__(self, path: str, load: Callable[[], T], value: T) -> None:
        self.value = value
        self.error: ConfigError | None = None
        self._path = path
        self._load = load
        self._mark: Mark | None = None

    @property
    def fault(self) -> Fault | None:
        """Return what is wrong with it now."""
        return None if self.error is None else Fault(self.error.message, self.error.hint)

    def look_again(self, *, force: bool) -> _Look[T] | None:
        """Read the file if it has changed, or could have."""
        now = mark(self._path)
        return None if not force and now is not None and now == self._mark else self.look()

    def look(self) -> _Look[T]:
        """Read the file."""
        # The mark is taken first: a file that changes while it is read has another one the next time.
        now = mark(self._path)
        try:
            return _Look(now, self._load())
        except ConfigError as exc:
            # What was in the way may pass without the file's changing.
            return _Look(None, exc)

    def take(self, look: _Look[T] | None) -> None:
        """Keep what a look has given, and log what is new about it."""
        if look is None:
            return
        self._mark = look.mark
        if isinstance(look.found, ConfigError):
            if self.error is None or self.error.message != look.found.message:
                log.error("configuration broken, keeping the last good one", what=look.found.message)
            self.error = look.found
        else:
            if self.error is not None or self.value != look.found:
                log.info("configuration reloaded", file=shown_file(self._path))
            self.value, self.error = look.found, None
