"""Find intercore's databases, read them when they change, and make the runs follow them.

A database becomes known because the configuration names it, or because it belongs to the directory of a run, a request
or a hook. It is read when its stamp has changed: before the answer to a request that may depend on it, and in the
background while one of its runs is active. Only one task at a time reads a database and applies what it has read. A
request waits only briefly for that task, so a database that hangs does not delay answers.

A database that cannot be read is retried after 1, 2, 4 … 60 seconds, or as soon as its stamp changes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.adopted_runs import AdoptedRuns, Moves, database_of
from fluxbudgetd.decisions.attachments import SessionAttachments
from fluxbudgetd.decisions.ic_databases import Finder, KnownDatabase, Limits, Readers
from fluxbudgetd.decisions.ic_projects import IcProjects
from fluxbudgetd.errors import FluxError
from fluxbudgetd.model import IntercoreReading, Run, SourceStatus
from fluxbudgetd.sources import watch
from fluxbudgetd.sources.intercore import Found
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount

log = structlog.get_logger()

_STAT_SECONDS = 30.0
_PROJECT_SECONDS = 4.0
_CLAIMS_SECONDS = 2.0
_CLAIMS_AT_ONCE = 100
_WATCH_PAUSE_SECONDS = 0.05
_UNSETTLED_SECONDS = 0.06
_MOST_DATABASES = 256


class DatabaseReport(NamedTuple):
    """What is known of a database. `runs` has our ids of its followed runs, `portfolios` the ids of portfolio parents.

    `since` is when its state began. `findings` say what was not adopted or not followed, and why.
    """

    path: str
    status: SourceStatus
    since: int
    schema: int | None
    runs: tuple[str, ...]
    portfolios: tuple[str, ...]
    findings: tuple[str, ...]


class Adoptions:
    """Keeps the runs of intercore's databases up to date. Each of `on_read` is called after a reading was applied."""

    def __init__(
        self,
        runs: AdoptedRuns,
        totals: Totals,
        attachments: SessionAttachments,
        settings: Settings,
        clock: Callable[[], int],
    ) -> None:
        self.on_read: list[Callable[[str, IntercoreReading], None]] = []
        self._runs = runs
        self._totals = totals
        self._attachments = attachments
        self._settings = settings
        self._clock = clock
        self._finder = Finder(totals.places)
        self._readers = Readers()
        self._projects = IcProjects(totals.places, settings)
        self._known: dict[str, KnownDatabase] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        # Each event belongs to the task that waits for it. That task also replaces it.
        self._runs_changed = anyio.Event()
        self._has_changes = anyio.Event()
        self._rest = anyio.Event()

    async def load(self) -> None:
        """Read the ledger, after the runs, and note the databases of its runs; raises `LedgerError`."""
        await self._runs.load()
        for account in self._totals.followed():
            if path := database_of(account.run):
                self._know(path)

    @property
    def databases(self) -> tuple[DatabaseReport, ...]:
        """Return the known databases, by path."""
        return tuple(self._report(self._known[path]) for path in sorted(self._known))

    def reading_of(self, path: str) -> IntercoreReading | None:
        """Return the last reading of a database; None if it has not been read."""
        known = self._known.get(path)
        return None if known is None else known.reading

    def is_current(self, path: str) -> bool:
        """Return True if a database was read and its reading applied, and it has not changed since."""
        known = self._known.get(path)
        return known is not None and known.reading is not None and known.began_at is None and not self._is_due(known)

    def is_outdated(self, run: Run) -> bool:
        """Return True if the database of a run has changed since it was read. Costs two stats for an adopted run."""
        known = self._known.get(database_of(run))
        return known is not None and self._is_on and self._is_due(known)

    def stale_why(self, run: Run, since: float) -> str | None:
        """Return why a run may lack changes that its database had at `since` (loop time); None if it has them."""
        known = self._known.get(database_of(run))
        if known is None or not self._is_on:
            return None
        status = known.status
        is_faulty = known.failure or status.state not in ("ok", "slow", "unread")
        # For an ended run, only a change of the database matters: the run may be active again.
        if is_faulty and run.status == "active":
            return f"intercore: {status.state}: {known.failure or status.detail} ({known.path})"
        if known.applied_as_of >= since or not self._is_due(known):
            return None
        return f"intercore: slow: {known.path} could not be read in time"

    async def refresh(self, directory: str | None, account: RunAccount | None, deadline: float) -> None:
        """Bring the database of a directory, and that of a run, up to date, as far as the deadline allows."""
        if not self._is_on:
            return
        limits = Limits.until(deadline)
        paths = set()
        if directory is not None:
            until = limits.usual if self._finder.has_examined(directory) else limits.first
            if (found := await self._finder.of(directory, until)) is not None:
                paths.add(self._note_found(found).path)
        if account is not None and (path := database_of(account.run)):
            paths.add(path)
        for path in sorted(paths):
            await self._bring_up_to_date(self._know(path), limits)

    async def refresh_all(self, deadline: float, directory: str | None = None) -> None:
        """Bring all known databases, and that of a directory, up to date, as far as the deadline allows."""
        await self.refresh(directory, None, deadline)
        if self._is_on:
            limits = Limits.until(deadline)
            for known in list(self._known.values()):
                await self._bring_up_to_date(known, limits)

    def note_runs(self) -> None:
        """Request a search for the databases of the runs' projects, after runs or the configuration have changed."""
        for event in (self._runs_changed, self._has_changes, self._rest):
            event.set()

    async def serve(self) -> None:
        """Read databases on request, and follow the databases of active runs, until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for known in self._known.values():
                self._request(known)
            tasks.start_soon(self._find_all)
            tasks.start_soon(self._watch)
            tasks.start_soon(self._check_now_and_then)

    @property
    def _is_on(self) -> bool:
        return self._settings.config.intercore.adopt

    def _know(self, path: str) -> KnownDatabase:
        known = self._known.get(path)
        if known is None:
            self._make_room()
            known = self._known[path] = KnownDatabase(path, self._clock())
        return known

    def _make_room(self) -> None:
        """Forget a database if too many are known. Those of followed runs stay."""
        if len(self._known) >= _MOST_DATABASES:
            idle = (path for path, known in self._known.items() if known.began_at is None and not self._runs.of(path))
            if (path := next(idle, None)) is not None:
                del self._known[path]

    def _forget_moved(self, path: str | None) -> None:
        """Forget a database that no longer exists, once none of its runs is left."""
        known = None if path is None else self._known.get(path)
        if known is not None and not self._runs.of(known.path):
            del self._known[known.path]

    def _note_found(self, found: Found) -> KnownDatabase:
        known = self._know(found.path)
        known.note_found(found, self._clock())
        return known

    def _is_due(self, known: KnownDatabase) -> bool:
        """Return True if a database must be read. Its stamp is checked once per turn of the event loop."""
        return known.is_due(checks=self._totals.turn.is_first(("intercore", known.path)))

    async def _bring_up_to_date(self, known: KnownDatabase, limits: Limits) -> None:
        """Wait until a database was read and its reading applied, as long as the limits allow.

        The limit for applying a reading is longer, because applying does not depend on a file that may hang.
        """
        with anyio.CancelScope(deadline=limits.first if known.reading is None else limits.usual):
            # A read that is under way may have begun before the latest write.
            for _ in range(2):
                is_wanted = known.began_at is not None or self._is_due(known)
                if not is_wanted or known.is_slow or self._tasks is None:
                    break
                await self._request(known).wait()
        if known.is_applying:
            with anyio.CancelScope(deadline=limits.first):
                await known.done.wait()

    def _request(self, known: KnownDatabase) -> anyio.Event:
        """Start a task that reads a database, unless one runs; return the event that is set when the task has ended."""
        if known.began_at is None and known.fault is None and self._is_on and self._tasks is not None:
            known.began_at = anyio.current_time()
            known.done = anyio.Event()
            self._tasks.start_soon(self._read, known)
        return known.done

    async def _read(self, known: KnownDatabase) -> None:
        try:
            await self._read_and_apply(known)
        except FluxError as exc:
            # Nothing is lost: the next reading has the same values.
            if known.failure != exc.message:
                log.warning("intercore could not be followed", path=known.path, error=exc.message)
            known.note_failure(exc.message)
        except Exception as exc:
            # A defect, or a row that nothing expected. It must stop neither the daemon nor the other databases.
            log.exception("following intercore failed", path=known.path)
            known.note_failure(f"{type(exc).__name__}: {exc}")
        finally:
            known.began_at, known.is_applying = None, False
            known.done.set()
        if known.is_unsettled:
            self._request_later(known, _UNSETTLED_SECONDS)
        elif known.retry_at is not None and self._runs.of(known.path):
            self._request_later(known, known.retry_at - anyio.current_time())

    async def _read_and_apply(self, known: KnownDatabase) -> None:
        followed = self._runs.last_moves(known.path)
        began_at = anyio.current_time()
        before, was_watchable = known.status, known.is_watchable
        reading = await known.read(followed, self._readers)
        if known.is_watchable != was_watchable:
            self._rest.set()
        status = reading.status
        if before.state != status.state:
            known.since = self._clock()
            log.info(
                "source state changed", source="intercore", path=known.path, state=status.state, detail=status.detail
            )
        if status.is_readable:
            known.is_applying = True
            known.findings = tuple(await self._apply(known, reading))
        if status.is_readable or status.state == "absent":
            known.note_success()
            known.applied_as_of = began_at
        else:
            known.note_failure()
        for report in self.on_read:
            report(known.path, reading)

    def _request_later(self, known: KnownDatabase, seconds: float) -> None:
        """Check a database after this time, unless a check is due sooner. Usually, only one task waits for that."""
        at = anyio.current_time() + seconds

        async def request() -> None:
            await anyio.sleep_until(at)
            if known.next_at == at and self._known.get(known.path) is known:
                known.next_at = None
                self._request_if_due(known)

        if self._tasks is not None and (known.next_at is None or known.next_at > at):
            known.next_at = at
            self._tasks.start_soon(request)

    async def _apply(self, known: KnownDatabase, reading: IntercoreReading) -> list[str]:
        """Make the runs follow a reading. Return what could not be followed; raise `FluxError` to cause a retry."""
        path = known.path
        failures: list[FluxError] = []
        findings = await self._adopt(path, reading, failures)
        softened = self._runs.softened(path, reading)
        for ic in reading.runs.values():
            await anyio.lowlevel.checkpoint()  # there may be a thousand of them
            account = self._runs.account_of(path, ic.id)
            if account is None:
                continue
            findings += [f"run {account.run.id}: {fault}" for fault in ic.faults]
            with _collected(failures):
                is_hard = account in softened and await self._projects.demands_hard(account.run.project_dir)
                await self._runs.follow(account, ic, Moves.of(ic, reading), is_hard=is_hard)
                self._runs.put_dispatches(account, reading.dispatches.get(ic.id, ()))
                if self._runs.holds_end(account, ic):
                    findings.append(
                        f"run {account.run.id} is {ic.status} there, but hard and exceeded: end it yourself"
                    )
        deadline = anyio.current_time() + _CLAIMS_SECONDS
        for number, claim in enumerate(reading.claims):
            if number % _CLAIMS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
            if (account := self._runs.run_of_claim(path, claim)) is not None:
                with _collected(failures):
                    finding = await self._attachments.claim(claim, account, deadline)
                    findings += [] if finding is None else [finding]
        findings += [f"{path}: {note}" for note in reading.status.notes]
        if failures:
            known.findings = tuple(findings)
            raise failures[0]
        return findings

    async def _adopt(self, path: str, reading: IntercoreReading, failures: list[FluxError]) -> list[str]:
        findings = []
        for ic in self._runs.new(path, reading):
            with _collected(failures):
                candidate = await self._projects.candidate(path, ic, self._runs.other_database(path, ic.id))
                findings.append(await self._runs.adopt(candidate, path, reading))
                self._forget_moved(candidate.moved_from)
        return [finding for finding in findings if finding is not None]

    def _report(self, known: KnownDatabase) -> DatabaseReport:
        reading = known.reading
        failure = [f"{known.path} could not be followed: {known.failure}"] if known.failure else []
        gone = [] if reading is None or not known.status.is_readable else self._runs.missing(known.path, reading)
        return DatabaseReport(
            path=known.path,
            status=known.status,
            since=known.since,
            schema=None if reading is None else reading.schema,
            runs=tuple(account.run.id for account in self._runs.of(known.path)),
            portfolios=() if reading is None else tuple(ic.id for ic in reading.runs.values() if not ic.project_dir),
            findings=(*failure, *known.findings, *(f"run {run} is no longer in {known.path}" for run in gone)),
        )

    async def _find_all(self) -> None:
        """Find the databases of the configuration and of the runs' projects, again after each change of these."""
        while True:
            self._runs_changed = anyio.Event()
            if self._is_on:
                followed = [account.run for account in self._totals.followed()]
                adopted = filter(None, map(database_of, followed))
                for path in dict.fromkeys((*self._settings.config.intercore.databases, *adopted)):
                    self._request_found(await self._finder.at(path))
                by_hand = dict.fromkeys(run.project_dir for run in followed if not database_of(run))
                for directory in by_hand:
                    if not self._finder.has_examined(directory):
                        until = anyio.current_time() + _PROJECT_SECONDS
                        self._request_found(await self._finder.of(directory, until))
            await self._runs_changed.wait()

    def _request_found(self, found: Found | None) -> None:
        if found is not None:
            self._request_if_due(self._note_found(found))

    def _request_if_due(self, known: KnownDatabase) -> None:
        if self._is_due(known):
            self._request(known)

    def _is_following(self) -> bool:
        return self._is_on and any(database_of(account.run) for account in self._totals.accounts.active())

    async def _watch(self) -> None:
        """Read databases when their files change, while one of their runs is active."""
        while True:
            self._rest = rest = anyio.Event()
            paths = sorted(path for path, known in self._known.items() if known.is_watchable)
            if not paths or not self._is_following():
                await rest.wait()
                continue
            changes = watch.changes(paths[0], map(os.path.dirname, paths[1:]), rest)
            async with anyio.create_task_group() as tasks, aclosing(changes):
                tasks.start_soon(watch.set_when_cancelled, rest)
                async for _ in changes:
                    self._request_all_due()
                    await anyio.sleep(_WATCH_PAUSE_SECONDS)
                tasks.cancel_scope.cancel()

    async def _check_now_and_then(self) -> None:
        """Check the watched files periodically, because watching may miss a change."""
        while True:
            self._has_changes = anyio.Event()
            if self._is_following():
                await anyio.sleep(_STAT_SECONDS)
                self._request_all_due()
            else:
                await self._has_changes.wait()

    def _request_all_due(self) -> None:
        for known in self._known.values():
            self._request_if_due(known)


@contextmanager
def _collected(failures: list[FluxError]) -> Iterator[None]:
    """Record a failure to follow one run, so that the other runs are still followed."""
    try:
        yield
    except FluxError as exc:
        failures.append(exc)
