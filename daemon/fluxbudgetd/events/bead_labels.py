"""Write what runs have used into the label `tokens_spent` of their beads. Only `sync` waits for it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import anyio

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.sources.beads import BeadsError, BeadsSource
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.totals.places import Places

# A run's label is written at most this often, unless its phase has changed or it has ended.
PACE_SECONDS = 600.0
# A smaller difference, in percent, is not worth a commit in the database of beads.
_LEAST_PCT = 1
# Changes within this time are considered together.
_COALESCE_SECONDS = 1.0
# How long finding a run's `.beads` may take. No request waits for it.
_LOOKUP_SECONDS = 5.0


class _Label(NamedTuple):
    """What a run's label has to say at a time (`at`, by the event loop's clock)."""

    phase: str
    is_over: bool
    tokens: int
    at: float


class BeadLabels:
    """Keeps the labels of runs' beads up to date. They say how many billing tokens were measured, without estimates.

    A run's scope need not be a bead; then there is nothing to write.
    """

    def __init__(self, accounts: Accounts, places: Places, source: BeadsSource, settings: Settings) -> None:
        self._accounts = accounts
        self._places = places
        self._source = source
        self._settings = settings
        self._changed: dict[str, None] = {}
        self._written: dict[str, _Label] = {}
        # Changed runs that have not been compared with their last labels yet.
        self._forced: set[str] = set()
        # Changed runs whose last write failed.
        self._failing: set[str] = set()
        self._has_changes = anyio.Event()
        self._is_urgent = anyio.Event()
        self._is_considered = anyio.Event()

    def request(self, run: str) -> None:
        """Request that a run's label is written when that is due; returns at once."""
        if self._settings.config.beads.write_back:
            self._changed[run] = None
            self._has_changes.set()

    def may_concern(self, account: RunAccount) -> bool:
        """Return True if the run may have a bead whose label is written."""
        return self._settings.config.beads.write_back and account.run.scope is not None

    async def sync(self, accounts: Sequence[RunAccount], deadline: float) -> None:
        """Write the labels of these runs now. Return when that is done or has failed, or at the deadline."""
        if not self._settings.config.beads.write_back:
            return
        runs = [account.run.id for account in accounts]
        for run in runs:
            self._forced.add(run)
            self._failing.discard(run)
            self.request(run)
        self._is_urgent.set()
        with anyio.CancelScope(deadline=deadline):
            while any(run in self._changed and run not in self._failing for run in runs):
                await self._is_considered.wait()

    async def serve(self) -> None:
        """Write labels until cancelled."""
        retry_at = math.inf
        while True:
            with anyio.CancelScope(deadline=retry_at):
                await self._has_changes.wait()
            self._has_changes = anyio.Event()
            retry_at = math.inf
            for run in list(self._changed):
                retry_at = min(retry_at, await self._consider(run))
                self._is_considered.set()
                self._is_considered = anyio.Event()
            with anyio.move_on_after(_COALESCE_SECONDS):
                await self._is_urgent.wait()
            self._is_urgent = anyio.Event()

    async def _consider(self, run: str) -> float:
        """Write a run's label if that is due. Return when to consider it again (loop time)."""
        account = self._accounts.runs[run]
        label = self._label(account)
        is_forced = run in self._forced
        last = None if is_forced else self._written.get(run)
        # A request from here on is for the next write.
        self._forced.discard(run)
        self._failing.discard(run)
        due = math.inf if label is None else _due(label, last)
        if label is not None and due <= label.at:
            due = await self._write(account, label)
            if is_forced and run in self._failing:
                self._forced.add(run)
        if due == math.inf and run not in self._forced:
            self._changed.pop(run, None)
        return due

    async def _write(self, account: RunAccount, label: _Label) -> float:
        run = account.run
        directory = await self._source.find(await self._places.of(run.project_dir, label.at + _LOOKUP_SECONDS))
        if directory is not None and run.scope is not None:
            try:
                await self._source.put_spent(run.scope, directory, label.tokens)
            except BeadsError:
                self._failing.add(run.id)
                return self._source.retry_at(directory)
        self._written[run.id] = label
        # It may have changed meanwhile.
        new = self._label(account)
        return math.inf if new is None else _due(new, label)

    def _label(self, account: RunAccount) -> _Label | None:
        run = account.run
        if run.scope is None or not account.is_loaded or not self._accounts.has_scope(run):
            return None
        return _Label(run.phase, run.ended_at is not None, account.measured().billing, anyio.current_time())


def _due(new: _Label, old: _Label | None) -> float:
    """Return when a label has to be written (loop time); infinity if it need not be."""
    if old is None:
        return new.at if new.tokens else math.inf
    if (new.phase, new.is_over) != (old.phase, old.is_over):
        return new.at
    difference = abs(new.tokens - old.tokens)
    is_enough = difference > 0 and difference * 100 >= old.tokens * _LEAST_PCT
    return old.at + PACE_SECONDS if is_enough else math.inf
