"""Which review a sub-agent belongs to: the latest one, at or before its first usage, that launched or named it."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from fluxbudgetd.model import AgentRow, Sample, Triage
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.report import is_since
from fluxbudgetd.wire.messages import TriageLine

_ROW = "row-"


class Launch(NamedTuple):
    """An agent in a review: the decision about it is `line`."""

    triage: Triage
    line: TriageLine

    @property
    def is_selected(self) -> bool:
        """True if the review launched the agent."""
        return self.line.action == "Selected"


class Launches:
    """The agents of reviews. `runs` names the runs of each session.

    A review belongs to its session; without a session, to all sessions of its run.
    """

    def __init__(self, triages: Iterable[Triage], runs: Mapping[str, Collection[str]]) -> None:
        self._runs = runs
        self._of_session: dict[tuple[str, str], list[Launch]] = {}
        self._of_run: dict[tuple[str, str], list[Launch]] = {}
        for triage in triages:
            for line in triage.agents:
                name, launch = estimates.plain_name(line.name), Launch(triage, line)
                if triage.session is not None:
                    self._of_session.setdefault((triage.session, name), []).append(launch)
                elif triage.run is not None:
                    self._of_run.setdefault((triage.run, name), []).append(launch)

    def selecting(self, sample: Sample) -> Launch | None:
        """Return the latest review that launched this sub-agent, or None."""
        return max((launch for launch in self._before(sample) if launch.is_selected), key=_time, default=None)

    def naming(self, sample: Sample) -> Launch | None:
        """Return the latest review that named this sub-agent, whether it launched or deferred it, or None."""
        return max(self._before(sample), key=_time, default=None)

    def _before(self, sample: Sample) -> Iterable[Launch]:
        first = _first_usage(sample)
        found = list(self._of_session.get((sample.session, sample.agent), ()))
        for run in self._runs.get(sample.session, ()):
            found += self._of_run.get((run, sample.agent), ())
        return (launch for launch in found if is_since(first, launch.triage))


def _first_usage(sample: Sample) -> AgentRow:
    """Return a sub-agent's first usage. A row is compared by its own time and key, as everywhere."""
    if sample.source == "interstat":
        key = int(sample.instance.removeprefix(_ROW))
        return AgentRow(key, sample.session, sample.ended_at, sample.agent, sample.billing)
    return AgentRow(0, sample.session, sample.started_at, sample.agent, sample.billing)


def _time(launch: Launch) -> int:
    return launch.triage.at
