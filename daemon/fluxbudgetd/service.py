"""The composition root: builds the parts, loads them, and runs their tasks. Nothing is decided here."""

from collections.abc import Callable

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.admission import Admissions
from fluxbudgetd.decisions.adopted_runs import AdoptedRuns
from fluxbudgetd.decisions.adoption import Adoptions
from fluxbudgetd.decisions.allowances import Allowances
from fluxbudgetd.decisions.attachments import SessionAttachments
from fluxbudgetd.decisions.beads import Beads
from fluxbudgetd.decisions.calibration import Calibrations
from fluxbudgetd.decisions.callers import Callers
from fluxbudgetd.decisions.ceilings import Ceilings
from fluxbudgetd.decisions.checks import Checks
from fluxbudgetd.decisions.lifecycle import Lifecycle
from fluxbudgetd.decisions.loosenings import Loosenings
from fluxbudgetd.decisions.refusals import Refusals
from fluxbudgetd.decisions.reservations import Reservations
from fluxbudgetd.decisions.reviews import Reviews
from fluxbudgetd.decisions.samples import Samples
from fluxbudgetd.decisions.thresholds import Thresholds
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.events.bead_labels import BeadLabels
from fluxbudgetd.events.channels import HostEnvironment, make_channels
from fluxbudgetd.events.deliveries import Deliveries
from fluxbudgetd.events.delivery import Delivery
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.events.session_warnings import SessionWarnings
from fluxbudgetd.events.state_file_writer import StateFileWriter
from fluxbudgetd.events.write_back import WriteBack
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Balance
from fluxbudgetd.sources.beads import BeadsSource
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.totals import Reports, Totals
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import Hints

_CHANNEL_WAIT_SECONDS = 60.0
#: After this long, a scan of interstat's whole table counts as stalled. Ten million rows take less.
LONGEST_SCAN_SECONDS = 60.0


class Service:
    """The daemon's parts. `newest` gets the ledger's events. Without `host` there are no channels or state files.

    `clock` returns the time in microseconds since the epoch.
    """

    def __init__(
        self,
        source: InterstatSource,
        transcripts: TranscriptSource,
        ledger: Ledger,
        newest: NewestEvents,
        settings: Settings,
        host: HostEnvironment | None = None,
        clock: Callable[[], int] = now_micros,
        beads: BeadsSource | None = None,
    ) -> None:
        self._clock = clock
        self.ledger = ledger
        self.settings = settings
        self._transcripts = transcripts
        self._writer = writer = LedgerWriter()
        self.accounts = accounts = Accounts(self._on_account_change)
        self.totals = totals = Totals(
            source,
            transcripts,
            ledger,
            writer,
            settings,
            accounts,
            clock,
            Reports(self._on_refreshed, self._on_status_change, self._on_measured, self._on_unknown_scope),
        )
        # The first lock to take; see docs/ARCHITECTURE.md for the order.
        runs_lock = anyio.Lock()
        self.thresholds = Thresholds(accounts, ledger.runs, writer, settings, clock, runs_lock)
        self.callers = Callers(ledger, writer)
        self.refusals = Refusals(ledger, writer, self.callers, clock, newest.last_of_run)
        self.checks = Checks(
            accounts, totals.tallier, ledger, settings, clock, runs_lock, self.thresholds, self.refusals
        )
        self.loosenings = Loosenings(accounts, ledger.events, clock)
        self.attachments = SessionAttachments(accounts, totals, ledger.runs, clock, runs_lock, self.loosenings)
        self.lifecycle = Lifecycle(
            accounts,
            totals,
            self.attachments,
            ledger.runs,
            settings,
            clock,
            self.thresholds,
            self.loosenings,
            self._on_runs_change,
        )
        self.adopted_runs = AdoptedRuns(
            accounts,
            totals,
            self.attachments,
            ledger,
            writer,
            settings,
            clock,
            self.thresholds,
            self._on_runs_change,
        )
        self.adoption = Adoptions(self.adopted_runs, totals, self.attachments, settings, clock)
        self.bead_source = beads or BeadsSource()
        self.beads = Beads(
            self.bead_source,
            accounts,
            totals,
            settings,
            clock,
            self.lifecycle,
            self.attachments,
            self.adopted_runs,
            lambda directory, deadline: self.adoption.refresh(directory, None, deadline),
        )
        self.bead_labels = BeadLabels(accounts, totals.places, self.bead_source, settings)
        self.allowances = Allowances(accounts, totals, ledger.runs, clock, runs_lock, self.loosenings)
        self._reservations = Reservations(accounts, totals, ledger.reservations, writer, clock)
        self.samples = Samples(accounts, totals, self._reservations, ledger, clock)
        self.reviews = Reviews(accounts, totals, self.samples, ledger, settings, clock)
        self.calibrations = Calibrations(accounts, totals, ledger, self.reviews, self.samples, clock)
        self.admission = Admissions(self._reservations, clock)
        self.ceilings = Ceilings(self.admission, settings)
        self.events = EventLog(newest, ledger.events)
        self.write_back = WriteBack(accounts, self.events, settings, clock, totals.followed)
        self.adoption.on_read.append(self.write_back.note_read)
        self.session_warnings = SessionWarnings(accounts, self.events, ledger, writer, settings)
        self.deliveries: Deliveries | None = None
        self.state_files: StateFileWriter | None = None
        if host is not None:
            self.deliveries = self._make_deliveries(host)
            self.state_files = StateFileWriter(
                accounts, host.state_directory, host.marker_directory, clock, totals.freshness.is_known_stale
            )
        # Fires when a run starts or ends, or a source changes state; then a new one replaces it.
        self.status_changed = anyio.Event()

    def _make_deliveries(self, host: HostEnvironment) -> Deliveries:
        stored = self.ledger.deliveries
        channels = make_channels(self.settings, self.accounts, host, self._clock, self._refreshed_balance)
        return Deliveries(
            [
                Delivery(channel, self.events, stored, self._writer, self._clock, self._has_active_runs)
                for channel in channels
            ],
            stored,
        )

    def _has_active_runs(self) -> bool:
        return self.totals.follower.is_active

    async def load(self) -> None:
        """Read the ledger; raises `LedgerError`."""
        await self.events.load()
        await self.totals.load()
        await self.adoption.load()
        await self.callers.load()
        await self._reservations.load()
        await self.samples.load()
        await self.session_warnings.load()
        if self.deliveries is not None:
            await self.deliveries.load()
        if self.state_files is not None:
            await self.state_files.open()
        self._on_runs_change()

    async def serve(self) -> None:
        """Run every part's tasks until cancelled; then flush what still waits for the ledger."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._writer.serve)
                tasks.start_soon(self.totals.serve)
                tasks.start_soon(self.adoption.serve)
                tasks.start_soon(self.beads.serve)
                tasks.start_soon(self.bead_labels.serve)
                tasks.start_soon(self._reservations.serve)
                tasks.start_soon(self.samples.serve)
                tasks.start_soon(self.refusals.serve)
                tasks.start_soon(self.session_warnings.serve)
                tasks.start_soon(self.write_back.serve)
                tasks.start_soon(self._follow_settings)
                if self.deliveries is not None:
                    tasks.start_soon(self.deliveries.serve)
                if self.state_files is not None:
                    tasks.start_soon(self.state_files.serve)
        finally:
            await self._writer.flush()

    async def reopen_sources(self) -> None:
        """Close the sources' files; the next read opens them again."""
        await self.totals.interstat.reopen()

    def restore_state_files(self) -> None:
        """Write the state files again if their directory was removed."""
        if self.state_files is not None:
            self.state_files.check()

    def retry_channels(self) -> None:
        """Try failed channels again at once."""
        if self.deliveries is not None:
            self.deliveries.retry_now()

    @property
    def ledger_fault(self) -> str | None:
        """Return why the ledger could not be written or read last, or None."""
        return self._writer.fault

    async def stalled(self, seconds: float) -> str | None:
        """Return the name of the part that has made no progress for `seconds`, or None.

        A ledger that fails and a source that cannot be read have answered, so they are not stalled. This takes
        at most `seconds`.
        """
        if self.totals.refresher.has_stalled(seconds):
            return "the sources' reader"
        if self.totals.history.has_stalled(max(seconds, LONGEST_SCAN_SECONDS)):
            return "a scan of interstat's whole table"
        try:
            with anyio.fail_after(seconds):
                await self.ledger.events.last_number()
        except TimeoutError:
            return "the ledger"
        except LedgerError:
            pass
        return None

    async def _refreshed_balance(self, account: RunAccount) -> Balance:
        """Return a run's balance for a channel: fresh, or after a minute by the last known numbers."""
        deadline = anyio.current_time() + _CHANNEL_WAIT_SECONDS
        return (await self.totals.standing(account, deadline)).balance

    def _on_refreshed(self, account: RunAccount) -> None:
        self.thresholds.evaluate(account)
        self.bead_labels.request(account.run.id)
        self._reservations.evaluate(account)
        self.write_back.request(account.run.id)
        if self.deliveries is not None:
            self.deliveries.evaluate(account)
        if self.state_files is not None:
            self.state_files.request(account.run.id)

    def _on_measured(self, session: str) -> None:
        self._reservations.settle(session)

    def _on_unknown_scope(self, scope: str, hints: Hints) -> None:
        self.beads.note_unknown(scope, hints)

    def _on_account_change(self, run: str) -> None:
        self.beads.note_change(run)
        self.bead_labels.request(run)
        self.write_back.request(run)
        if self.state_files is not None:
            self.state_files.request(run)

    async def _follow_settings(self) -> None:
        config = self.settings.config
        while True:
            config = await self.settings.changed(config)
            self._on_settings_changed()

    def _on_settings_changed(self) -> None:
        self._transcripts.configure(self.settings.claude_dirs, are_chosen=self.settings.claude_dirs_are_chosen)
        for account in self.accounts.active():
            self.thresholds.evaluate(account)
            self.beads.note_change(account.run.id)
            self.bead_labels.request(account.run.id)
        self.write_back.request_all()
        self.adoption.note_runs()
        self.retry_channels()

    def _on_runs_change(self) -> None:
        self._on_status_change()
        self.totals.follower.note_runs()
        self.adoption.note_runs()

    def _on_status_change(self) -> None:
        self.status_changed.set()
        self.status_changed = anyio.Event()
