"""The composition root: builds the parts, loads them, and runs their tasks. Nothing is decided here."""

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.admission import Admission
from fluxbudgetd.decisions.checks import Checks
from fluxbudgetd.decisions.lifecycle import Lifecycle
from fluxbudgetd.decisions.parts import Parts
from fluxbudgetd.decisions.reviews import Reviews
from fluxbudgetd.errors import LedgerError
from fluxbudgetd.events.channels import Surroundings, channels
from fluxbudgetd.events.delivery import Deliveries, Delivery
from fluxbudgetd.events.log import EventLog
from fluxbudgetd.events.session_warnings import SessionWarnings
from fluxbudgetd.events.state_file_writer import StateFileWriter
from fluxbudgetd.ledger import Ledger, LedgerWriter
from fluxbudgetd.model import Balance
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.accounts import Accounts, RunAccount

_CHANNEL_WAIT_SECONDS = 60.0
# One scan of a table of ten million rows takes less.
_LONGEST_SCAN_SECONDS = 60.0


class Service:
    """The daemon's parts. Without `around` no channel is served and no state file written."""

    def __init__(
        self,
        source: InterstatSource,
        transcripts: TranscriptSource,
        ledger: Ledger,
        settings: Settings,
        around: Surroundings | None = None,
    ) -> None:
        self.ledger = ledger
        self.settings = settings
        self.writer = LedgerWriter()
        self.accounts = Accounts(self._on_account_change)
        self.totals = Totals(
            source,
            transcripts,
            ledger,
            self.writer,
            settings,
            self.accounts,
            now_micros,
            on_refreshed=self._on_refreshed,
            on_source_change=self._on_status_change,
        )
        parts = Parts(self.accounts, self.totals, ledger, self.writer, settings, now_micros, anyio.Lock())
        self.checks = Checks(parts)
        self.lifecycle = Lifecycle(parts, self.checks, self._on_runs_change)
        self.reviews = Reviews(parts)
        self.admission = Admission(parts)
        self.session_warnings = SessionWarnings(self.accounts, ledger, self.writer, settings)
        self.events = EventLog(ledger, self.session_warnings.take)
        self.deliveries: Deliveries | None = None
        self.state_files: StateFileWriter | None = None
        if around is not None:
            self.deliveries = self._deliveries(around)
            self.state_files = StateFileWriter(
                self.accounts, around.state_directory, now_micros, self.totals.freshness.is_known_stale
            )
        settings.heeded = self._on_settings_change
        # Fires when a run starts or ends, or a source changes state; then there is a new one to wait for.
        self.status_changed = anyio.Event()

    def _deliveries(self, around: Surroundings) -> Deliveries:
        made = channels(self.settings, self.accounts, around, now_micros, self._balance)
        each = (Delivery(one, self.events, self.ledger, now_micros, self._has_active_runs) for one in made)
        return Deliveries(each, self.ledger)

    def _has_active_runs(self) -> bool:
        return self.totals.follower.is_active

    async def load(self) -> None:
        """Read the ledger; raises `LedgerError`."""
        await self.events.prepare()
        await self.totals.load()
        await self.admission.load()
        await self.session_warnings.load()
        if self.deliveries is not None:
            await self.deliveries.load()
        if self.state_files is not None:
            await self.state_files.open()
        self._on_runs_change()

    async def serve(self) -> None:
        """Run every part's tasks until cancelled; then write the last of what waits for the ledger."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.writer.serve)
                tasks.start_soon(self.totals.serve)
                tasks.start_soon(self.admission.serve)
                if self.deliveries is not None:
                    tasks.start_soon(self.deliveries.serve)
                if self.state_files is not None:
                    tasks.start_soon(self.state_files.serve)
        finally:
            await self.writer.flush()

    async def reopen_sources(self) -> None:
        """Close the sources' files; the next read opens them again."""
        await self.totals.refresher.reopen()

    def retry_channels(self) -> None:
        """Try failed channels again at once."""
        if self.deliveries is not None:
            self.deliveries.nudge()

    @property
    def ledger_fault(self) -> str | None:
        """Return why the ledger could not be written or read last, or None."""
        return self.writer.fault

    async def stalled(self, seconds: float) -> str | None:
        """Return what has made no progress for so long, in words; None if the ledger and the reader do.

        A ledger that fails and a source that cannot be read have answered, so they are not stalled. This takes
        at most `seconds`.
        """
        if self.totals.refresher.stands_still(seconds):
            return "the sources' reader"
        if self.totals.history.stands_still(max(seconds, _LONGEST_SCAN_SECONDS)):
            return "a scan of interstat's whole table"
        try:
            with anyio.fail_after(seconds):
                await self.ledger.last_event()
        except TimeoutError:
            return "the ledger"
        except LedgerError:
            pass
        return None

    async def _balance(self, account: RunAccount) -> Balance:
        """Return where a run stands, for a channel: fresh, or by the last known numbers."""
        deadline = anyio.current_time() + _CHANNEL_WAIT_SECONDS
        return (await self.totals.standing(account, deadline)).balance

    def _on_refreshed(self, account: RunAccount) -> None:
        self.checks.look(account)
        self.admission.look(account)
        if self.deliveries is not None:
            self.deliveries.look(account)
        if self.state_files is not None:
            self.state_files.note(account.run.id)

    def _on_account_change(self, run: str) -> None:
        if self.state_files is not None:
            self.state_files.note(run)

    def _on_settings_change(self) -> None:
        """Evaluate the thresholds again."""
        for account in self.accounts.active():
            self.checks.look(account)
        self.retry_channels()

    def _on_runs_change(self) -> None:
        self._on_status_change()
        self.totals.follower.note_runs()

    def _on_status_change(self) -> None:
        self.status_changed.set()
        self.status_changed = anyio.Event()
