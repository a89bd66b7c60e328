"""Which review a sub-agent belongs to: the latest one, at or before its first usage, that launched or named it."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from fluxbudgetd.model import AgentRow, Sample, Triage
from fluxbudgetd.policy import estimates
from fluxbudgetd.policy.report import is_since
from fluxbudgetd.wire.messages import TriageLine

_ROW = "row-"


class ReviewAgent(NamedTuple):
    """An agent in a review: the decision about it is `line`."""

    triage: Triage
    line: TriageLine


class ReviewAgents:
    """The agents of reviews. `runs` names the runs of each session.

    A review belongs to its session; without a session, to all sessions of its run.
    """

    def __init__(self, triages: Iterable[Triage], runs: Mapping[str, Collection[str]]) -> None:
        self._runs = runs
        self._of_session: dict[tuple[str, str], list[ReviewAgent]] = {}
        self._of_run: dict[tuple[str, str], list[ReviewAgent]] = {}
        for triage in triages:
            for line in triage.agents:
                name, agent = estimates.plain_name(line.name), ReviewAgent(triage, line)
                if triage.session is not None:
                    self._of_session.setdefault((triage.session, name), []).append(agent)
                elif triage.run is not None:
                    self._of_run.setdefault((triage.run, name), []).append(agent)

    def selecting(self, sample: Sample) -> ReviewAgent | None:
        """Return the latest review that launched this sub-agent, or None."""
        return _latest(_first_usage(sample), filter(_is_selected, self._candidates(sample)))

    def naming(self, sample: Sample) -> ReviewAgent | None:
        """Return the latest review that named this sub-agent, whether it launched or deferred it, or None."""
        return _latest(_first_usage(sample), self._candidates(sample))

    def _candidates(self, sample: Sample) -> Iterable[ReviewAgent]:
        found = list(self._of_session.get((sample.session, sample.agent), ()))
        for run in self._runs.get(sample.session, ()):
            found += self._of_run.get((run, sample.agent), ())
        return found


def latest_selecting(name: str, triages: Iterable[Triage]) -> ReviewAgent | None:
    """Return the first of these reviews (newest first) that has selected the agent with this plain name, or None."""
    for triage in triages:
        for line in triage.agents:
            if estimates.plain_name(line.name) == name and line.action == "Selected":
                return ReviewAgent(triage, line)
    return None


def _latest(first_usage: AgentRow, agents: Iterable[ReviewAgent]) -> ReviewAgent | None:
    earlier = (agent for agent in agents if is_since(first_usage, agent.triage))
    return max(earlier, key=lambda agent: (agent.triage.at, agent.triage.id), default=None)


def _is_selected(agent: ReviewAgent) -> bool:
    return agent.line.action == "Selected"


def _first_usage(sample: Sample) -> AgentRow:
    """Return a sub-agent's first usage. A row is compared by its own time and key, as everywhere."""
    if sample.source == "interstat":
        key = int(sample.instance.removeprefix(_ROW))
        return AgentRow(key, sample.session, sample.ended_at, sample.agent, sample.billing)
    return AgentRow(0, sample.session, sample.started_at, sample.agent, sample.billing)
