"""Calibration: what phases and agents have actually cost, and what slicing saves."""

from collections.abc import Callable

import anyio.lowlevel

from fluxbudgetd import __version__
from fluxbudgetd.decisions.reviews import Reviews
from fluxbudgetd.errors import RequestTimeoutError
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import to_text
from fluxbudgetd.policy import calibrate
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import AgentCalibration, Calibration, Provenance, SlicingCalibration

# A calibration must fit into a frame, and into a file of limited size.
_MOST_AGENTS = 1000
# Let other tasks run after this many runs.
_RUNS_PER_TURN = 64


class Calibrations:
    """Calibrations from the runs and reviews so far."""

    def __init__(
        self, accounts: Accounts, totals: Totals, ledger: Ledger, reviews: Reviews, clock: Callable[[], int]
    ) -> None:
        self._accounts = accounts
        self._history = totals.history
        self._ledger = ledger
        self._reviews = reviews
        self._clock = clock

    async def calibrate(self, deadline: float) -> tuple[Calibration, str | None]:
        """Return a calibration from history, and why it is stale; raises `RequestTimeoutError`."""
        # Measure against the configured multiplier, not against what an earlier calibration proposed.
        rules = await self._reviews.rules(None, deadline, calibrated=False)
        triages = await self._ledger.reviews.triages()
        phases = []
        for number, (run_id, account) in enumerate(list(self._accounts.runs.items())):
            phases.append(calibrate.measured_phases(self._accounts.timelines[run_id], account.by_phase()))
            if number % _RUNS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
        agents = sorted(calibrate.sliced_agents(triages))

        def scan(source: InterstatSource) -> tuple[dict[str, AgentCalibration], SlicingCalibration] | None:
            scanned = source.calibration(agents)
            if scanned is None:
                return None
            by_agent, rows = scanned
            most = sorted(by_agent, key=lambda name: (-by_agent[name].sample_size, name))[:_MOST_AGENTS]
            spreads = {name: by_agent[name] for name in sorted(most)}
            return spreads, calibrate.slicing(triages, rows, rules.slicing_multiplier)

        # The slicing multiplier depends on the triages as well.
        key = f"calibration with {[each.id for each in triages[-1:]]}, {rules.slicing_multiplier}"
        found = await self._history.ask(key, scan, deadline)
        if not found.in_time:
            raise RequestTimeoutError("the agents' history is still being read", "ask again with more --timeout")
        spreads, slicing = found.value or ({}, calibrate.slicing((), (), rules.slicing_multiplier))
        calibration = Calibration(
            provenance=Provenance(
                at=to_text(self._clock()),
                version=__version__,
                ledger=self._ledger.path,
                interstat=self._history.status.path,
                runs=sum(bool(measured) for measured in phases),
                rows=sum(spread.sample_size for spread in spreads.values()),
                triages=len(triages),
            ),
            phases=await off_loop(len(phases), calibrate.phases, phases),
            agents=spreads,
            slicing=slicing,
        )
        return calibration, found.stale_why
