"""Read and write the labels of beads, with one call of `bd` at a time, and remember where that fails."""

import os
import stat
from collections.abc import Iterable, Mapping

import anyio
import msgspec
import structlog

from fluxbudgetd.clock import now_micros
from fluxbudgetd.config.shown import shortened
from fluxbudgetd.model import Bead, SourceState, SourceStatus
from fluxbudgetd.sources.beads import labels
from fluxbudgetd.sources.beads.jobs import Jobs
from fluxbudgetd.sources.beads.process import MOST_BYTES, Call, Outcome, found_in_path
from fluxbudgetd.wire.text import fold, one_line, shown_path, unfold

log = structlog.get_logger()

_PROGRAM, _MARK = "bd", ".beads"
#: A call that takes longer is killed.
CALL_SECONDS = 2.0
# Starting and reaping a program takes milliseconds, unless its file system hangs.
_SLACK_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_CHARACTERS = 300
_MOST_DIRECTORIES = 64
_FAULT_MICROS = 3600 * 1_000_000
_UNKNOWN_ID = 1
# Variables that are meant for the daemon, and those that name another database than the project's, or another backend.
_NOT_FOR_CHILDREN = ("LISTEN_", "WATCHDOG_", "NOTIFY_SOCKET", "BD_BACKEND", "BD_DB", "BEADS_DB", "BEADS_DIR")


class BeadsError(Exception):
    """`bd` gave no answer; `BeadsSource.reports` says why."""


class UnusableError(Exception):
    """`bd` is not called, because it is missing or could not work."""

    def __init__(self, state: SourceState, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.state, self.detail, self.hint = state, detail, hint


class BeadsReport(msgspec.Struct):
    """Whether `bd` answers in a directory, since when, and when it is called there again (loop time).

    `at` is when it was called last (microseconds).
    """

    status: SourceStatus
    since: int
    at: int
    retry_at: float = 0.0
    failures: int = 0


class BeadsSource:
    """Calls `bd` in a worker thread, and pauses after failures: 1 s, 2 s, 4 s … 60 s, for each directory.

    While a directory pauses, `read` and `put_spent` fail at once.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, seconds: float = CALL_SECONDS) -> None:
        given = os.environ if environ is None else environ
        self._environ = {name: value for name, value in given.items() if not name.startswith(_NOT_FOR_CHILDREN)}
        self._seconds = seconds
        self._reports: dict[str, BeadsReport] = {}
        self._turn = anyio.Lock()
        self._jobs = Jobs()

    @property
    def reports(self) -> list[BeadsReport]:
        """Return the directories in which `bd` was called. Old failures are left out: they may be fixed by now."""
        oldest = now_micros() - _FAULT_MICROS
        return [report for report in self._reports.values() if report.status.is_readable or report.at > oldest]

    def retry_at(self, directory: str) -> float:
        """Return when `bd` may be called in a directory, by the event loop's clock."""
        report = self._reports.get(directory)
        return 0.0 if report is None else report.retry_at

    async def find(self, places: Iterable[str]) -> str | None:
        """Return the first of these directories that has beads; None if none has, or the file system hangs."""
        candidates = tuple(places)
        async with self._turn:
            return await self._jobs.run(lambda: _first_with_beads(candidates), self._seconds)

    async def read(self, name: str, directory: str) -> Bead | None:
        """Return a bead; None if there is none with this id. Raises `BeadsError`."""
        if not labels.is_bead_id(name):
            return None
        outcome = await self._call(directory, "--json", "state", "list", name)
        if _is_about_unknown(outcome, name):
            self._note(directory, "ok")
            return None
        self._require_success(directory, outcome)
        try:
            bead = labels.bead_of(outcome.output, name)
        except (ValueError, RecursionError) as exc:
            raise self._unusual(directory, "state list") from exc
        faults = () if bead is None else bead.faults
        self._note(directory, "ok", notes=tuple(f"{name}: {fault}" for fault in faults))
        return bead

    async def put_spent(self, name: str, directory: str, tokens: int) -> None:
        """Make a bead's label say how many tokens were spent; writes only a difference. Raises `BeadsError`."""
        if not labels.is_bead_id(name):
            return
        outcome = await self._call(directory, "--json", "label", "list", name)
        if _is_about_unknown(outcome, name):
            self._note(directory, "ok")
            return
        self._require_success(directory, outcome)
        try:
            old = labels.in_dimension(labels.labels_of(outcome.output), labels.SPENT)
        except (ValueError, RecursionError) as exc:
            raise self._unusual(directory, "label list") from exc
        new = f"{labels.SPENT}:{tokens}"
        if old != [new]:
            removed = [word for label in old if label != new for word in ("--remove-label", label)]
            added = [] if new in old else ["--add-label", new]
            own = ("--sandbox", "--actor=fluxbudget")
            self._require_success(directory, await self._call(directory, "update", name, *removed, *added, *own))
        self._note(directory, "ok")

    async def _call(self, directory: str, *words: str) -> Outcome:
        """Call `bd`, and return how it ended. Raises `BeadsError` if it was not started, or was killed."""
        async with self._turn:
            if anyio.current_time() < self.retry_at(directory):
                raise BeadsError
            try:
                outcome = await self._carried_out(directory, words)
            except UnusableError as exc:
                raise self._failed(directory, exc.state, exc.detail, exc.hint) from exc
            except (OSError, ValueError, RuntimeError) as exc:  # RuntimeError: the system has no more threads
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
                detail = f"bd cannot be started: {reason}"
                raise self._failed(directory, "unreadable", detail, _by_hand(directory)) from exc
        if outcome is None:
            raise self._failed(directory, "slow", "bd hangs and cannot be killed", "check its file system")
        if outcome.cut == "time":
            detail = f"bd was killed after {self._seconds:g} s"
            hint = "another program may hold the lock of its database: look for running bd or dolt processes"
            raise self._failed(directory, "slow", detail, hint)
        if outcome.cut == "output":
            detail = f"bd wrote more than {MOST_BYTES >> 10} KiB"
            raise self._failed(directory, "schema_drift", detail, _by_hand(directory))
        return outcome

    async def _carried_out(self, directory: str, words: tuple[str, ...]) -> Outcome | None:
        call = Call(words, _raw(directory), self._environ, self._seconds)

        def carry_out() -> Outcome:
            return call.carry_out(self._program_for(directory))

        return await self._jobs.run(carry_out, self._seconds + _SLACK_SECONDS, call.stop)

    def _program_for(self, directory: str) -> str:
        """Return the path of `bd`; raise `UnusableError` if it cannot work in a directory, or is missing. Blocks."""
        if not os.access(os.path.join(_raw(directory), _MARK), os.W_OK):
            detail = "bd must lock its database, but fluxbudgetd cannot write to the directory"
            raise UnusableError("read-only", detail, f"if the service's sandbox protects it: {_opened(directory)}")
        program = found_in_path(_PROGRAM, self._environ)
        if program is None:
            hint = f"install beads, then add it to the service's PATH with {_opened(directory)}"
            raise UnusableError("absent", "bd is not on the daemon's PATH", hint)
        return program

    def _require_success(self, directory: str, outcome: Outcome) -> None:
        if outcome.code:
            ended = f"exit code {outcome.code}" if outcome.code > 0 else f"signal {-outcome.code}"
            reason = _first_line(outcome.errors) or _first_line(outcome.output)
            detail = f"bd failed with {ended}{': ' if reason else ''}{reason}"
            raise self._failed(directory, "unreadable", detail, _by_hand(directory))

    def _unusual(self, directory: str, command: str) -> BeadsError:
        detail = f"the output of 'bd --json {command}' is not in the expected format"
        return self._failed(directory, "schema_drift", detail, "check that this bd belongs to beads, and its version")

    def _failed(self, directory: str, state: SourceState, detail: str, hint: str) -> BeadsError:
        report = self._note(directory, state, detail, hint)
        report.retry_at = anyio.current_time() + min(2.0**report.failures, _LONGEST_PAUSE_SECONDS)
        report.failures = min(report.failures + 1, 10)
        return BeadsError()

    def _note(
        self, directory: str, state: SourceState, detail: str = "", hint: str = "", notes: tuple[str, ...] = ()
    ) -> BeadsReport:
        """Record how a call in a directory went; log it if that is new."""
        status = SourceStatus(
            name="beads",
            path=shown_path(os.path.join(directory, _MARK)),
            state=state,
            detail=detail,
            hint=hint,
            notes=notes,
        )
        report = self._reports.get(directory)
        if report is None:
            if len(self._reports) >= _MOST_DIRECTORIES:
                del self._reports[next(iter(self._reports))]
            report = self._reports[directory] = BeadsReport(status, now_micros(), now_micros())
            is_news = not status.is_readable
        else:
            is_news = report.status.state != state
            report.since = now_micros() if is_news else report.since
            report.status, report.at = status, now_micros()
        if status.is_readable:
            report.failures, report.retry_at = 0, 0.0
        if is_news:
            log.info("source state changed", source="beads", path=status.path, state=state, detail=detail)
        return report


def _first_with_beads(places: Iterable[str]) -> str | None:
    """Return the first directory with beads that belong to the daemon's user or to root. Blocks."""
    for place in places:
        try:
            info = os.stat(os.path.join(_raw(place), _MARK))
        except (OSError, ValueError):
            continue
        if stat.S_ISDIR(info.st_mode) and info.st_uid in (os.geteuid(), 0):
            return place
    return None


def _is_about_unknown(outcome: Outcome, name: str) -> bool:
    """Return True if `bd` says that it does not know this id; any other failure has the same exit code."""
    return outcome.code == _UNKNOWN_ID and name.encode() in outcome.errors + outcome.output


def _first_line(output: bytes) -> str:
    return shortened(one_line(fold(output.strip().split(b"\n")[0].strip())), _MOST_CHARACTERS)


def _by_hand(directory: str) -> str:
    return f"run 'bd list' in {one_line(directory)} to see why; to open the service's sandbox: {_opened(directory)}"


def _opened(directory: str) -> str:
    return f"'fluxbudgetctl service install --sprints {one_line(directory)}'"


def _raw(directory: str) -> str:
    """Return a path as the system calls take it."""
    return os.fsdecode(unfold(directory))
