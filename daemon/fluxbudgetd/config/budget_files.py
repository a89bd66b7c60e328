"""flux-drive's budget files. Each is checked for every request, and parsed only when it has changed.

Each check takes a thread, at most one per file, so a file system that does not answer delays only the requests that
need its file. Requests share a check that begins after they have arrived; if they are cancelled, it continues. Parsing
takes place in another process (`yaml_process.py`).
"""

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import NamedTuple

import anyio

from fluxbudgetd.config.flux_drive import KEYS, ReviewBudget, laid_over
from fluxbudgetd.config.reading import FileStamp, file_stamp, read_text
from fluxbudgetd.config.yaml_process import WorkerError, parse
from fluxbudgetd.config.yaml_values import Values
from fluxbudgetd.errors import ConfigError

# When this many files hang, others have to wait.
_MOST_THREADS = 16
# How many files are remembered.
_MOST_FILES = 256
_RETRY_SECONDS = 60.0


class BudgetFile(NamedTuple):
    """Where a file is, and how large it may be.

    `locate` returns None if there is no file. It blocks, and may raise `ConfigError`.
    """

    key: Hashable
    locate: Callable[[], str | None]
    most_bytes: int


class Content(NamedTuple):
    """What a file sets. No `values`: there is no file."""

    path: str
    values: Values | None


class _Found(NamedTuple):
    """The result of a check: the content, or what the request that needs it raises.

    It remains the result while the file has this stamp, or the text with this digest, but not after `retry_at` (by the
    monotonic clock).
    """

    outcome: Content | Exception
    path: str | None = None
    stamp: FileStamp | None = None
    digest: bytes | None = None
    retry_at: float = math.inf


class _Checks:
    """A file's checks: how many have begun and ended, and what the last one has found."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self.changed = anyio.Event()
        self.found = _Found(Content("", None))

    def end(self, found: _Found) -> None:
        """Apply what the check has found."""
        self.found = found
        self.ended = self.begun
        self.changed.set()
        self.changed = anyio.Event()

    @property
    def is_under_way(self) -> bool:
        """Return True if a check has begun and not ended yet."""
        return self.begun > self.ended


class BudgetFiles:
    """What the files contain. Belongs to one event loop."""

    def __init__(self) -> None:
        self._checks: dict[Hashable, _Checks] = {}
        self._threads = ThreadPoolExecutor(_MOST_THREADS, "budget-files")

    def close(self) -> None:
        """End the threads, without waiting for those that hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def content(self, file: BudgetFile) -> Content:
        """Return what a file contains now; raise `ConfigError` if it is wrong.

        Waits until cancelled for a file system that does not answer.
        """
        checks = self._checks_of(file.key)
        needed = checks.begun + 1
        while checks.ended < needed:
            if not checks.is_under_way:
                self._begin(file, checks)
            await checks.changed.wait()
        outcome = checks.found.outcome
        if isinstance(outcome, ConfigError):
            # A new one, because each time an exception is raised, its traceback grows.
            raise ConfigError(outcome.message, outcome.hint)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def prepare(self, file: BudgetFile) -> None:
        """Start the first check of a file, unless there was one; return at once."""
        checks = self._checks_of(file.key)
        if not checks.begun:
            self._begin(file, checks)

    def _checks_of(self, key: Hashable) -> _Checks:
        checks = self._checks.pop(key, None) or _Checks()
        self._checks[key] = checks  # the last in order is the one used last
        if len(self._checks) > _MOST_FILES:
            unused = next((name for name, each in self._checks.items() if not each.is_under_way), key)
            del self._checks[unused]
        return checks

    def _begin(self, file: BudgetFile, checks: _Checks) -> None:
        checks.begun += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, _check, file, checks.found)
        # `close` cancels the checks that no thread has begun. By then, no request waits for them.
        future.add_done_callback(lambda done: None if done.cancelled() else checks.end(done.result()))


def _check(file: BudgetFile, last: _Found) -> _Found:
    """Check a file, and parse it if it has changed. Never raises. Blocks."""
    try:
        path = file.locate()
        if path is None:
            return _Found(Content("", None))
        is_known = last.path == path and time.monotonic() < last.retry_at
        stamp = file_stamp(path)
        if is_known and stamp is not None and stamp == last.stamp:
            return last
        text = read_text(path, file.most_bytes)
        if text is None:
            return _Found(Content(path, None), path, stamp)
        digest = blake2b(text.encode(), digest_size=16).digest()
        if is_known and digest == last.digest:
            return last._replace(stamp=stamp)
        outcome, retry_at = _parsed(path, text)
        return _Found(outcome, path, stamp, digest, retry_at)
    except Exception as exc:  # noqa: BLE001  raised again by the requests that need the file
        return _Found(exc)


def _parsed(path: str, text: str) -> tuple[Content | ConfigError, float]:
    """Return a file's content, or what is wrong with it, and when to parse it again."""
    try:
        values = parse(text, path, KEYS)
        laid_over(ReviewBudget(), values, path)
    except WorkerError as exc:
        return exc, time.monotonic() + _RETRY_SECONDS
    except ConfigError as exc:
        return exc, math.inf
    return Content(path, values), math.inf
