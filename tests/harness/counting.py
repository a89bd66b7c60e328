"""Two daemons for the same histories: the service in the test's own process, and a real one."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.from_thread
import pytest

from fluxbudgetd import clock as clock_module
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.wire import messages
from harness.daemon import Home, Wire
from harness.interstat import Interstat
from harness.service import service_over
from harness.transcript_recount import micros

WAIT_MS = 60_000


class Shown(NamedTuple):
    """What a run's report says: (input, output, cache reads, cache creation) by agent and by model."""

    by_agent: dict[str, tuple[int, int, int, int]]
    by_model: dict[str, tuple[int, int, int, int]]
    billing: int
    total: int


class Clock:
    """The clock of the service in the test's own process, in microseconds. It only moves when `pass_` is called."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1_000_000 * 1000

    def pass_(self, milliseconds: int) -> None:
        self.now += milliseconds * 1000


class Daemon(Protocol):
    """What a history does with a daemon."""

    claude_dir: Path
    #: True if the daemon reads only when it is asked.
    is_quiet: bool

    def now(self) -> int: ...
    def pass_(self, milliseconds: int) -> None: ...
    def ask(self, request: messages.AnyRequest) -> Any: ...
    def shown(self, run: str) -> Shown: ...
    def counts_from(self, run: str, session: str) -> int: ...
    def restart(self) -> None: ...
    def kill(self) -> None: ...


class InProcess:
    """The service in the test's own process. It reads only when it is asked, so that the order of readings is known."""

    is_quiet = True

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.claude_dir = directory
        self.clock = clock
        self._contexts = contextlib.ExitStack()
        self._portal = self._contexts.enter_context(anyio.from_thread.start_blocking_portal())
        self._open()

    def now(self) -> int:
        return self.clock.now

    def pass_(self, milliseconds: int) -> None:
        self.clock.pass_(milliseconds)

    def _open(self) -> None:
        self._serving = self._portal.wrap_async_context_manager(service_over(self.claude_dir, follows=False))
        service, _ = self._serving.__enter__()
        self._context = Context(service, str(self.claude_dir), self.clock.now, lambda: 0)

    def ask(self, request: messages.AnyRequest) -> Any:
        return self._portal.call(handle, self._context, request, os.getpid())

    def shown(self, run: str) -> Shown:
        return _shown(self, run)

    def counts_from(self, run: str, session: str) -> int:
        return _counts_from(self, run, session)

    def restart(self) -> None:
        self._serving.__exit__(None, None, None)
        self._open()

    def kill(self) -> None:
        self.restart()

    def close(self) -> None:
        self._serving.__exit__(None, None, None)
        self._contexts.close()


@contextmanager
def in_process(directory: Path) -> Iterator[InProcess]:
    """Serve from a directory, with a clock that the test sets."""
    clock = Clock()
    Interstat(directory / "metrics.db").close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module, "time", SimpleNamespace(time_ns=lambda: clock.now * 1000))
        daemon = InProcess(directory, clock)
        try:
            yield daemon
        finally:
            daemon.close()


class RealDaemon:
    """A real daemon, which also reads on its own whenever a file changes."""

    is_quiet = False

    def __init__(self, home: Home) -> None:
        self.home = home
        Interstat(home.interstat).close()
        self.claude_dir = home.root / "claude"
        self._daemon = home.start()

    def now(self) -> int:
        return time.time_ns() // 1000

    def pass_(self, milliseconds: int) -> None:
        """Wait until the clock shows another millisecond, so that times written in milliseconds differ."""
        before = self.now() // 1000
        while self.now() // 1000 == before:
            time.sleep(0.0002)

    def ask(self, request: messages.AnyRequest) -> Any:
        with Wire(self.home.socket) as wire:
            return wire.ask(request)

    def shown(self, run: str) -> Shown:
        return _shown(self, run)

    def counts_from(self, run: str, session: str) -> int:
        return _counts_from(self, run, session)

    def restart(self) -> None:
        self._daemon.stop()
        self._daemon = self.home.start()

    def kill(self) -> None:
        self._daemon.kill()
        self._daemon = self.home.start()


def _shown(daemon: Daemon, run: str) -> Shown:
    """Return a run's report, which must be fresh."""
    answer = daemon.ask(messages.RunShow(run=run, wait_ms=WAIT_MS))
    assert isinstance(answer, messages.RunShowAnswer), answer
    assert not answer.spend.stale, answer.spend
    return Shown(
        {line.name: _tokens(line) for line in answer.by_agent if line.total},
        {line.name: _tokens(line) for line in answer.by_model if line.total},
        answer.totals.billing,
        answer.totals.total,
    )


def _tokens(line: messages.Tally) -> tuple[int, int, int, int]:
    return line.input, line.output, line.cache_read, line.cache_creation


def _counts_from(daemon: Daemon, run: str, session: str) -> int:
    """Return when a session's latest attachment to a run starts to count, in microseconds; 0: the whole session."""
    answer = daemon.ask(messages.RunShow(run=run, wait_ms=WAIT_MS))
    assert isinstance(answer, messages.RunShowAnswer), answer
    since = [one.since for one in answer.attachments if one.session == session][-1]
    return 0 if since is None else micros(since) or 0
