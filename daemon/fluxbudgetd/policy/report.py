"""The cost report of a review: what its agents were expected to cost, and what they have cost.

An agent's actual cost is the sum of its measured rows in the triage's session since the triage. A row is
written when an agent ends, its tokens later: until then the actual cost is `pending`, never 0, and a sum without it is
`partial`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fluxbudgetd.model import AgentRow, Counts, Triage, Usage
from fluxbudgetd.policy import estimates
from fluxbudgetd.wire.messages import (
    MAX_TOKENS,
    Arrived,
    CostBasis,
    CostReport,
    ReportAgent,
    ReportDeferred,
    ReportStage,
    TriageLine,
)

_SECOND = 1_000_000
_STAGES = (1, 2)
#: Only the latest agents are listed, so that a report fits into a frame. Sums include all of them.
MOST_LISTED = 1000

#: plain agent name → the sum of its rows since the triage
Actuals = Mapping[str, Counts]


def actuals(triage: Triage, records: Iterable[Usage]) -> dict[str, Counts]:
    """Return what the agents of a session have used since a triage."""
    found: dict[str, Counts] = {}
    for record in records:
        if is_since(record, triage):
            name = estimates.plain_name(record.agent)
            found[name] = found.get(name, Counts()) + record.counts
    return found


def is_since(record: Usage | AgentRow, triage: Triage) -> bool:
    """Return True if a record of the triage's session is newer than the triage.

    If the time is missing or truncated to the triage's second, compare keys, which increase with each record.
    """
    if record.at is None or record.at == triage.at - triage.at % _SECOND:
        return triage.last_key is None or record.key > triage.last_key
    return record.at >= triage.at


def of_triage(triage: Triage, used: Actuals) -> CostReport:
    """Return a triage's cost report."""
    basis = triage.cost_basis
    entries = [
        _Entry(line, used.get(estimates.plain_name(line.name)), line.est_tokens, basis) for line in triage.agents
    ]
    return _report(triage.budget, triage.input_type, triage.cost_basis, entries)


def of_run(
    budget: int | None, basis: CostBasis, triages: Sequence[Triage], records: Mapping[str | None, Iterable[Usage]]
) -> CostReport:
    """Return the cost report of all of a run's triages (oldest first), with their sessions' records.

    It is in tokens of the run's cost basis, `basis`; triages of earlier versions have estimates in their own alone.

    An agent has one entry per triage. A row belongs to the latest earlier triage in its session that named the agent.
    An entry without a row is left out if a later triage named the agent again.
    """
    rows: dict[tuple[str | None, str], list[Usage]] = {}
    for session, of_session in records.items():
        for record in of_session:
            rows.setdefault((session, estimates.plain_name(record.agent)), []).append(record)
    entries = []
    following: dict[tuple[str | None, str], Triage] = {}
    for triage in reversed(triages):
        found = []
        for line in triage.agents:
            key = triage.session, estimates.plain_name(line.name)
            later = following.get(key)
            used = [
                record.counts
                for record in rows.get(key, ())
                if is_since(record, triage) and not (later is not None and is_since(record, later))
            ]
            following[key] = triage
            if used or later is None:
                found.append(_in_basis(triage, line, sum(used, Counts()) if used else None, basis))
        entries.append(found)
    return _report(budget, "run", basis, [entry for found in reversed(entries) for entry in found])


class _Entry(NamedTuple):
    """An agent of a triage, the sum of its rows (None: there are none), and its estimate in tokens of `basis`."""

    line: TriageLine
    used: Counts | None
    estimated: int
    basis: CostBasis

    @property
    def selected(self) -> bool:
        return self.line.action == "Selected"

    @property
    def actual(self) -> Arrived:
        """Return what has arrived, in tokens of the basis."""
        if self.used is None or self.used.pending == self.used.records:
            return "pending"
        return _capped(self.used.tokens(self.basis))


def _in_basis(triage: Triage, line: TriageLine, used: Counts | None, basis: CostBasis) -> _Entry:
    """Return an agent's entry in this basis, or if it has no such estimate, in the triage's."""
    estimated = line.est_billing if basis == "billing" else line.est_total
    if estimated is None:
        return _Entry(line, used, line.est_tokens, triage.cost_basis)
    return _Entry(line, used, estimated, basis)


def _agent(entry: _Entry) -> ReportAgent:
    line, used = entry.line, entry.used
    has_arrived = used is not None and used.pending < used.records
    counts = used or Counts()
    return ReportAgent(
        name=line.name,
        stage=line.stage,
        estimated=entry.estimated,
        actual_billing=_capped(counts.billing) if has_arrived else "pending",
        actual_total=_capped(counts.total) if has_arrived else "pending",
        cache_read=_capped(counts.cache_read) if has_arrived else "pending",
        delta_pct=delta_pct(counts.tokens(entry.basis), entry.estimated) if has_arrived else "pending",
        partial=has_arrived and counts.pending > 0,
        source=line.source,
        slicing_applied=line.sliced,
        sample_size=line.sample_size,
        model=line.model,
    )


def _deferred(entry: _Entry) -> ReportDeferred:
    line, used = entry.line, entry.used
    ran = used is not None and used.pending < used.records
    return ReportDeferred(
        name=line.name,
        stage=line.stage,
        estimated=entry.estimated,
        reason="blocked" if line.action == "Blocked" else "budget",
        actual_billing=_capped(used.billing) if used is not None and ran else None,
    )


def _report(budget: int | None, kind: str, basis: CostBasis, entries: Sequence[_Entry]) -> CostReport:
    launched = [entry for entry in entries if entry.selected]
    shown = entries[-MOST_LISTED:]
    agents = tuple(_agent(entry) for entry in launched)
    return CostReport(
        budget=budget,
        budget_type=kind,
        cost_basis=basis,
        estimated_total=_capped(sum(agent.estimated for agent in agents)),
        actual_billing=_sum(agent.actual_billing for agent in agents),
        actual_total=_sum(agent.actual_total for agent in agents),
        cache_read_total=_sum(agent.cache_read for agent in agents),
        partial=_partial(agents),
        pending=tuple(entry.line.name for entry in shown if entry.selected and entry.actual == "pending"),
        agents=tuple(_agent(entry) for entry in shown if entry.selected),
        deferred=tuple(_deferred(entry) for entry in shown if not entry.selected),
        not_listed=len(entries) - len(shown),
        by_stage={
            f"stage_{stage}": _stage([entry for entry in launched if entry.line.stage == stage]) for stage in _STAGES
        },
    )


def _stage(launched: Sequence[_Entry]) -> ReportStage:
    agents = [_agent(entry) for entry in launched]
    return ReportStage(
        agents=len(agents),
        estimated=_capped(sum(agent.estimated for agent in agents)),
        actual=_sum(entry.actual for entry in launched),
        partial=_partial(agents),
    )


def delta_pct(actual: int, estimated: int) -> int | None:
    """Return (actual - estimated) / estimated · 100, rounded half away from zero; None for an estimate of 0."""
    if not estimated:
        return None
    off = (actual - estimated) * 100
    return min(estimates.mean(abs(off), estimated), MAX_TOKENS) * (1 if off >= 0 else -1)


def _sum(values: Iterable[Arrived]) -> Arrived:
    """Return the sum of what has arrived, or `pending` if nothing has."""
    costs = list(values)
    arrived = [cost for cost in costs if cost != "pending"]
    return "pending" if costs and not arrived else _capped(sum(arrived))


def _partial(agents: Sequence[ReportAgent]) -> bool:
    pending = sum(agent.actual_total == "pending" for agent in agents)
    return 0 < pending < len(agents) or any(agent.partial for agent in agents)


def _capped(count: int) -> int:
    return min(count, MAX_TOKENS)
