"""intercore's databases: which are known, when each is read, and what a reading changes.

A database becomes known because the configuration names it, or because it belongs to the directory of a run, of a
request or of a hook. It is read when its stamp has changed: before a request is answered that may depend on it, and in
the background while one of its runs is followed. One task at a time reads a database, and applies what it has read. A
request waits for that task only briefly, so a database that hangs delays no answer.

A database that cannot be read is tried again after 1, 2, 4 … 60 seconds, or as soon as its stamp changes.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import NamedTuple

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import msgspec
import structlog

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.adopted_runs import AdoptedRuns, Moves
from fluxbudgetd.decisions.attachments import SessionAttachments
from fluxbudgetd.decisions.ic_projects import IcProjects
from fluxbudgetd.errors import FluxError
from fluxbudgetd.model import IntercoreReading, Run, SourceStatus
from fluxbudgetd.sources import intercore, watch
from fluxbudgetd.sources.intercore import IntercoreDatabase
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.account import RunAccount

log = structlog.get_logger()

#: The longest that a request waits for databases.
WAIT_SECONDS = 0.06
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_STAT_SECONDS = 30.0
_FIND_SECONDS = 2.0
_CLAIMS_SECONDS = 2.0
_WATCH_PAUSE_SECONDS = 0.05
_SLOW_SECONDS = 1.0
_MOST_DATABASES = 256
_MOST_THREADS = 8
_UNSETTLED_SECONDS = 0.06


class DatabaseReport(NamedTuple):
    """What is known of a database. `runs` are our ids of its followed runs, `portfolios` the ids of parents.

    `since` is when its state began. `findings` say what was not adopted or not followed, and why.
    """

    path: str
    status: SourceStatus
    since: int
    schema: int | None
    runs: tuple[str, ...]
    portfolios: tuple[str, ...]
    findings: tuple[str, ...]


class _Known:
    """A database, what was read last, and the task that reads it now."""

    def __init__(self, path: str, now: int) -> None:
        self.path = path
        self.database = IntercoreDatabase(path)
        self.fault: str | None = None
        self.reading: IntercoreReading | None = None
        self.stamp: intercore.Stamp | None = None
        self.since = now
        self.findings: tuple[str, ...] = ()
        self.is_outdated = True
        self.is_failing = False
        self.pause = _SHORTEST_PAUSE
        self.retry_at = 0.0
        self.began_at: float | None = None
        self.done = anyio.Event()


class Adoptions:
    """Keeps the runs of intercore's databases up to date. `on_read` are called after a reading was applied."""

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
        self._known: dict[str, _Known] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._limiter = limiter = anyio.CapacityLimiter(_MOST_THREADS)
        self._projects = IcProjects(totals.places, settings, limiter)
        self._searching: set[str] = set()
        self._looked_in: set[str] = set()
        self._runs_changed = anyio.Event()
        self._rest = anyio.Event()

    async def load(self) -> None:
        """Read the ledger, after the runs, and note the databases of its runs; raises `LedgerError`."""
        await self._runs.load()
        for account in self._totals.followed():
            if account.run.adopted is not None and account.run.adopted.database:
                self._know(account.run.adopted.database)

    @property
    def databases(self) -> tuple[DatabaseReport, ...]:
        """Return the known databases, by path."""
        return tuple(self._report(self._known[path]) for path in sorted(self._known))

    def reading_of(self, path: str) -> IntercoreReading | None:
        """Return what was read last from a database, None if nothing was."""
        known = self._known.get(path)
        return None if known is None else known.reading

    def is_current(self, path: str) -> bool:
        """Return True if a database was read and its reading applied, and it has not changed since."""
        known = self._known.get(path)
        return known is not None and known.reading is not None and known.began_at is None and not self._is_due(known)

    def is_outdated(self, run: Run) -> bool:
        """Return True if the database of a run has changed since it was read. Costs two stats, for such runs only."""
        if run.adopted is None or not run.adopted.database or not self._is_on:
            return False
        known = self._known.get(run.adopted.database)
        return known is not None and self._is_due(known)

    async def look(self, directory: str | None, account: RunAccount | None, deadline: float) -> None:
        """Bring the database of a directory, and that of a run, up to date, as far as the deadline allows."""
        if not self._is_on:
            return
        with anyio.CancelScope(deadline=min(deadline, anyio.current_time() + WAIT_SECONDS)):
            paths = set()
            if directory is not None and (found := await self._find(directory)) is not None:
                paths.add(found)
            if account is not None and account.run.adopted is not None and account.run.adopted.database:
                paths.add(account.run.adopted.database)
            await self._bring_up_to_date(self._know(path) for path in sorted(paths))

    async def look_at_all(self, deadline: float) -> None:
        """Bring all known databases up to date, as far as the deadline allows."""
        if self._is_on:
            with anyio.CancelScope(deadline=min(deadline, anyio.current_time() + WAIT_SECONDS)):
                await self._bring_up_to_date(list(self._known.values()))

    def note_runs(self) -> None:
        """Have the databases of the runs' projects found, after runs have started or ended."""
        self._runs_changed.set()
        self._rest.set()

    async def serve(self) -> None:
        """Read what is requested, and follow the databases of active runs, until cancelled."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for known in self._known.values():
                self._request(known)
            tasks.start_soon(self._find_all)
            tasks.start_soon(self._watch)
            tasks.start_soon(self._stat_followed)

    @property
    def _is_on(self) -> bool:
        return self._settings.config.intercore.adopt

    async def _find(self, directory: str) -> str | None:
        """Return the path of the nearest database of a directory, None if it has none or cannot be examined."""
        if directory in self._searching or len(self._searching) >= _MOST_THREADS:
            return None
        places = await self._totals.places.of(directory, anyio.current_time() + WAIT_SECONDS)
        found = await anyio.to_thread.run_sync(
            self._search, directory, places, abandon_on_cancel=True, limiter=self._limiter
        )
        if found is None:
            return None
        return self._note_found(found).path

    def _search(self, directory: str, places: tuple[str, ...]) -> intercore.Found | None:
        self._searching.add(directory)
        try:
            return intercore.find(places)
        finally:
            self._searching.discard(directory)

    def _know(self, path: str) -> _Known:
        known = self._known.get(path)
        if known is None:
            self._forget_one()
            known = self._known[path] = _Known(path, self._clock())
        return known

    def _forget_one(self) -> None:
        """Make room for another database. Those of followed runs stay."""
        if len(self._known) >= _MOST_DATABASES:
            idle = (path for path, known in self._known.items() if known.began_at is None and not self._runs.of(path))
            if (path := next(idle, None)) is not None:
                del self._known[path]

    def _is_due(self, known: _Known) -> bool:
        """Return True if a database must be read. One check of it serves all requests of a turn."""
        if known.fault is not None:
            return False
        if self._totals.turn.is_first(("intercore", known.path)):
            stamp = known.database.stamp()
            is_retried = known.is_failing and anyio.current_time() >= known.retry_at
            known.is_outdated = known.is_outdated or stamp != known.stamp or is_retried
        return known.is_outdated

    async def _bring_up_to_date(self, databases: Iterable[_Known]) -> None:
        for known in databases:
            # A read that is under way may have begun before the latest write.
            for _ in range(2):
                if not self._is_due(known) or self._is_slow(known) or self._tasks is None:
                    break
                await self._request(known).wait()

    def _is_slow(self, known: _Known) -> bool:
        return known.began_at is not None and anyio.current_time() - known.began_at > WAIT_SECONDS

    def _request(self, known: _Known) -> anyio.Event:
        """Have a database read, and return the event that ends the wait for that."""
        if known.began_at is None and self._tasks is not None:
            known.began_at = anyio.current_time()
            known.done = anyio.Event()
            self._tasks.start_soon(self._read, known)
        return known.done

    async def _read(self, known: _Known) -> None:
        try:
            await self._read_and_apply(known)
        except FluxError as exc:
            # Nothing was lost: the next reading says the same.
            log.warning("a reading of intercore could not be applied", path=known.path, error=exc.message)
            self._note_failure(known)
        except Exception:
            log.exception("reading intercore failed", path=known.path)
            self._note_failure(known)
        finally:
            known.began_at = None
            known.done.set()
        if known.is_failing and self._runs.of(known.path) and self._tasks is not None:
            self._tasks.start_soon(self._request_later, known, known.retry_at - anyio.current_time())

    async def _read_and_apply(self, known: _Known) -> None:
        followed = {
            account.run.adopted.run_id: account.run.adopted.last_move
            for account in self._runs.of(known.path)
            if account.run.adopted is not None
        }
        known.stamp, known.is_outdated = known.database.stamp(), False
        reading = await anyio.to_thread.run_sync(
            known.database.read, followed, abandon_on_cancel=True, limiter=self._limiter
        )
        if known.reading is None or known.reading.status.state != reading.status.state:
            known.since = self._clock()
            log.info("database of intercore", path=known.path, state=reading.status.state, detail=reading.status.detail)
        known.reading = reading
        if not reading.status.is_readable:
            if reading.status.state != "absent":
                self._note_failure(known)
            return
        known.findings = tuple(await self._apply(known.path, reading))
        known.is_failing, known.pause = False, _SHORTEST_PAUSE
        for report in self.on_read:
            report(known.path, reading)
        if known.stamp is not None and known.stamp.unsettled and self._tasks is not None:
            # A write soon after this one may not have changed the stamp.
            self._tasks.start_soon(self._request_later, known, _UNSETTLED_SECONDS)

    def _note_failure(self, known: _Known) -> None:
        known.is_failing = True
        known.retry_at = anyio.current_time() + known.pause
        known.pause = min(2 * known.pause, _LONGEST_PAUSE)

    async def _request_later(self, known: _Known, seconds: float) -> None:
        await anyio.sleep(seconds)
        if self._known.get(known.path) is known:
            self._request(known)

    async def _apply(self, path: str, reading: IntercoreReading) -> list[str]:
        """Have the runs follow a reading. Return what could not be followed; raise `FluxError` to try again."""
        findings: list[str | None] = []
        failures: list[FluxError] = []
        for ic in self._runs.new(path, reading):
            with _collected(failures):
                findings.append(await self._runs.adopt(await self._projects.candidate(path, ic), path, reading))
        soft = self._runs.softened(path, reading)
        for ic in reading.runs.values():
            account = self._runs.account_of(path, ic.id)
            if account is None:
                continue
            findings += [f"run {account.run.id}: {fault}" for fault in ic.faults]
            with _collected(failures):
                is_hard = account in soft and await self._projects.demands_hard(account.run.project_dir)
                await self._runs.follow(account, ic, Moves.of(ic, reading), is_hard=is_hard)
                self._runs.put_dispatches(account, reading.dispatches.get(ic.id, ()))
        deadline = anyio.current_time() + _CLAIMS_SECONDS
        for claim in reading.claims:
            if (account := self._runs.run_of_claim(path, claim)) is not None:
                with _collected(failures):
                    findings.append(await self._attachments.claim(claim, account, deadline))
        if failures:
            raise failures[0]
        gone = self._runs.missing(path, reading)
        return [
            *filter(None, findings),
            *(f"run {run} is no longer in {path}" for run in gone),
            *(f"{path}: {note}" for note in reading.status.notes),
        ]

    def _report(self, known: _Known) -> DatabaseReport:
        reading = known.reading
        status = SourceStatus(name="intercore", path=known.path, state="unread") if reading is None else reading.status
        if known.fault is not None:
            status = SourceStatus(
                name="intercore",
                path=known.path,
                state="unreadable",
                detail=known.fault,
                hint="replace it with a regular file of yours in a real directory .clavain",
            )
        elif known.began_at is not None and anyio.current_time() - known.began_at > _SLOW_SECONDS:
            status = msgspec.structs.replace(
                status, state="slow", detail="reading it takes long", hint="check its disk"
            )
        return DatabaseReport(
            path=known.path,
            status=status,
            since=known.since,
            schema=None if reading is None else reading.schema,
            runs=tuple(account.run.id for account in self._runs.of(known.path)),
            portfolios=() if reading is None else tuple(ic.id for ic in reading.runs.values() if not ic.project_dir),
            findings=known.findings,
        )

    async def _find_all(self) -> None:
        """Find the databases of the configuration and of the runs' projects, again whenever these may have changed."""
        while True:
            self._runs_changed = anyio.Event()
            if self._is_on:
                for path in self._settings.config.intercore.databases:
                    self._request_due(await self._find_at(path))
                for account in self._totals.followed():
                    await self._find_of_run(account)
            await self._runs_changed.wait()

    async def _find_of_run(self, account: RunAccount) -> None:
        run = account.run
        if run.adopted is not None and run.adopted.database:
            self._request_due(self._known.get(run.adopted.database) or await self._find_at(run.adopted.database))
        elif run.project_dir not in self._looked_in:
            self._looked_in.add(run.project_dir)
            with anyio.move_on_after(_FIND_SECONDS):
                found = await self._find(run.project_dir)
                self._request_due(None if found is None else self._know(found))

    async def _find_at(self, path: str) -> _Known | None:
        with anyio.move_on_after(_FIND_SECONDS):
            found = await anyio.to_thread.run_sync(_found_at, path, abandon_on_cancel=True, limiter=self._limiter)
            return self._note_found(found)
        return None

    def _note_found(self, found: intercore.Found) -> _Known:
        known = self._know(found.path)
        if known.fault != found.fault:
            known.fault, known.is_outdated, known.since = found.fault, True, self._clock()
        return known

    def _request_due(self, known: _Known | None) -> None:
        if known is not None and self._is_due(known):
            self._request(known)

    def _is_following(self) -> bool:
        return self._is_on and any(
            account.run.adopted is not None and account.run.adopted.database
            for account in self._totals.accounts.active()
        )

    async def _watch(self) -> None:
        """Read databases when their files change, while a run that one of them keeps is active."""
        while True:
            self._rest = anyio.Event()
            paths = sorted(path for path, known in self._known.items() if known.fault is None)
            if not paths or not self._is_following():
                await self._rest.wait()
                continue
            changes = watch.changes(paths[0], map(os.path.dirname, paths[1:]), self._rest)
            async with anyio.create_task_group() as tasks, aclosing(changes):
                tasks.start_soon(watch.set_when_cancelled, self._rest)
                async for _ in changes:
                    self._request_all_due()
                    await anyio.sleep(_WATCH_PAUSE_SECONDS)
                tasks.cancel_scope.cancel()

    async def _stat_followed(self) -> None:
        """Check the files now and then: watching may miss a change."""
        while True:
            rest = self._rest
            if self._is_following():
                await anyio.sleep(_STAT_SECONDS)
                self._request_all_due()
            else:
                await rest.wait()
                await anyio.lowlevel.checkpoint()

    def _request_all_due(self) -> None:
        for known in self._known.values():
            self._request_due(known)


def _found_at(path: str) -> intercore.Found:
    return intercore.found_at(os.path.expanduser(path))


@contextmanager
def _collected(failures: list[FluxError]) -> Iterator[None]:
    """Note a failure of one run, which must not keep the others from being followed."""
    try:
        yield
    except FluxError as exc:
        failures.append(exc)
