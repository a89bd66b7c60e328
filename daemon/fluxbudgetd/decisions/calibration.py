"""Calibration: what phases and agents have actually cost, what slicing saves, and how past reviews went."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

import anyio
import anyio.lowlevel

from fluxbudgetd import __version__
from fluxbudgetd.decisions.reviews import Reviews
from fluxbudgetd.decisions.samples import Samples
from fluxbudgetd.errors import ConfigError, LedgerError, RequestTimeoutError
from fluxbudgetd.ledger import Ledger
from fluxbudgetd.model import Counts, Sample, Triage, to_text
from fluxbudgetd.policy import calibrate, feedback
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.threads import off_loop
from fluxbudgetd.totals import Totals
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import (
    AgentCalibration,
    Calibration,
    Provenance,
    ReviewCalibration,
    SlicingCalibration,
)

T = TypeVar("T")

#: The samples of each agent.
_ByAgent = Sequence[Sequence[Sample]]
#: session → its runs
_Runs = Mapping[str, Collection[str]]
#: Called with the configured multiplier, perhaps in a worker thread.
_Find = Callable[[_ByAgent, Sequence[Triage], _Runs, float], T]

# Let other tasks run after this many runs or sessions.
_RUNS_PER_TURN = 64
_SESSIONS_PER_TURN = 500
# What a command waits for news, as a share of its time. A collection that takes longer continues without it.
_NEWS_SHARE = 0.25
# The name under which a new multiplier is announced.
_MULTIPLIER = "slicing_multiplier"


class _Findings(NamedTuple):
    """What samples and reviews show."""

    agents: dict[str, AgentCalibration]
    slicing: SlicingCalibration
    reviews: dict[str, ReviewCalibration]


class Calibrations:
    """Calibrations from the runs, samples and reviews so far."""

    def __init__(
        self,
        accounts: Accounts,
        totals: Totals,
        ledger: Ledger,
        reviews: Reviews,
        samples: Samples,
        clock: Callable[[], int],
    ) -> None:
        self._accounts = accounts
        self._history = totals.history
        self._ledger = ledger
        self._reviews = reviews
        self._samples = samples
        self._clock = clock
        # Two requests must not announce the same multiplier.
        self._announcing = anyio.Lock()

    async def calibrate(self, deadline: float) -> tuple[Calibration, str | None]:
        """Return a calibration from history, and why it is stale (None: fresh).

        Raises `ConfigError` and `RequestTimeoutError` if the configured multiplier is not known.
        """
        # Measure against the configured multiplier, not against what an earlier calibration proposed.
        rules = await self._reviews.rules(None, deadline, calibrated=False)
        stale_why = await self._samples.collect(deadline)
        triages = await self._ledger.reviews.triages()
        found = await self._find(_findings, triages, rules.slicing_multiplier)
        phases = await self._phases()
        calibration = Calibration(
            provenance=Provenance(
                at=to_text(self._clock()),
                version=__version__,
                ledger=self._ledger.path,
                interstat=self._history.status.path,
                runs=sum(bool(measured) for measured in phases),
                rows=sum(spread.sample_size for spread in found.agents.values()),
                triages=len(triages),
            ),
            phases=await off_loop(len(phases), calibrate.phases, phases),
            agents=found.agents,
            slicing=found.slicing,
            reviews=found.reviews,
        )
        return calibration, stale_why

    async def news(self, deadline: float) -> str:
        """Return a line about a new slicing multiplier, or an empty text. Each new multiplier is announced once."""
        now = anyio.current_time()
        async with self._announcing:
            try:
                return await self._news(now + (deadline - now) * _NEWS_SHARE)
            except (ConfigError, LedgerError, RequestTimeoutError):
                # The command that asks has its own answer, and a later one can announce it.
                return ""

    async def _news(self, deadline: float) -> str:
        if await self._samples.collect(deadline) is not None:
            # A stale calibration is not written.
            return ""
        by_agent = self._by_agent()
        if await off_loop(_size(by_agent), _count_sliced, by_agent) < calibrate.MIN_SLICED_REVIEWS:
            return ""
        configured = (await self._reviews.rules(None, deadline, calibrated=False)).slicing_multiplier
        in_use = (await self._reviews.rules(None, deadline)).slicing_multiplier
        slicing = await self._find(_slicing, await self._ledger.reviews.triages(), configured)
        announced = await self._ledger.announced.last(_MULTIPLIER)
        new = calibrate.news(slicing, in_use, None if announced is None else float(announced))
        if new is None:
            return ""
        await self._ledger.announced.add(_MULTIPLIER, repr(new))
        return (
            f"a new slicing multiplier is available: {new:g} instead of {in_use:g} ({slicing.sliced_reviews} reviews); "
            "apply it with 'fluxbudgetctl calibrate --write'"
        )

    def _by_agent(self) -> _ByAgent:
        return [self._samples.of(agent) for agent in self._samples.agents()]

    async def _find(self, find: _Find[T], triages: Sequence[Triage], multiplier: float) -> T:
        by_agent, runs = self._by_agent(), await self._runs()
        return await off_loop(_size(by_agent) + len(triages), find, by_agent, triages, runs, multiplier)

    async def _runs(self) -> dict[str, list[str]]:
        """Return the runs of each session."""
        runs = {}
        for number, (name, account) in enumerate(list(self._accounts.sessions.items())):
            runs[name] = [attachment.run for attachment in account.current]
            if number % _SESSIONS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
        return runs

    async def _phases(self) -> list[dict[str, Counts]]:
        """Return, for each run, what was measured of its completed phases."""
        phases = []
        for number, (run_id, account) in enumerate(list(self._accounts.runs.items())):
            phases.append(calibrate.measured_phases(self._accounts.timelines[run_id], account.by_phase()))
            if number % _RUNS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
        return phases


def _size(by_agent: _ByAgent) -> int:
    return sum(map(len, by_agent))


def _count_sliced(by_agent: _ByAgent) -> int:
    return sum(sample.sliced for sample in chain.from_iterable(by_agent))


def _findings(by_agent: _ByAgent, triages: Sequence[Triage], runs: _Runs, multiplier: float) -> _Findings:
    samples = list(chain.from_iterable(by_agent))
    reviewed = ReviewAgents(triages, runs)
    return _Findings(
        agents=calibrate.agents(samples),
        slicing=calibrate.slicing(samples, reviewed, multiplier),
        reviews=feedback.of_reviews(triages, samples, reviewed),
    )


def _slicing(by_agent: _ByAgent, triages: Sequence[Triage], runs: _Runs, multiplier: float) -> SlicingCalibration:
    return calibrate.slicing(chain.from_iterable(by_agent), ReviewAgents(triages, runs), multiplier)
