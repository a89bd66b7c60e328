"""Complete values of the model. A test changes the fields that it is about."""

from typing import Any

import msgspec

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.model import Run, Sample, Triage, Usage
from fluxbudgetd.policy import runs
from fluxbudgetd.policy.estimates import AgentEstimate
from fluxbudgetd.wire.messages import RunStart, TriageAction, TriageLine

#: microseconds since the epoch
NOW = 1_771_606_000_000_000


def a_run(**fields: object) -> Run:
    """Return a run that has just started, with the built-in defaults."""
    return msgspec.structs.replace(runs.new_run(RunStart(project_dir="/p"), "r1", NOW, RunDefaults()), **fields)


def a_record(**fields: object) -> Usage:
    """Return one row of interstat, measured and without tokens."""
    blank = Usage(
        key=1, at=NOW, agent="a", model="m", bead="", phase="", pending=False,
        input=0, output=0, cache_read=0, cache_creation=0,
    )  # fmt: skip
    return msgspec.structs.replace(blank, **fields)


def a_sample(billing: int, **fields: Any) -> Sample:
    """Return what a sub-agent has cost: these billing tokens, and ten times as many in all."""
    blank = Sample(
        session="s", instance="agent-1", agent="fd-x", model="m", sliced=False, input=billing, output=0,
        total=billing * 10, started_at=NOW, ended_at=NOW + 60_000_000, source="transcripts",
    )  # fmt: skip
    return msgspec.structs.replace(blank, **fields)


def samples_of(model: str, *billing: int, **fields: Any) -> list[Sample]:
    """Return one sample of a model for each of these costs."""
    return [a_sample(tokens, model=model, **fields) for tokens in billing]


def an_estimate(tokens: int, **fields: Any) -> AgentEstimate:
    """Return an agent's estimate, by default that of its category."""
    blank = AgentEstimate(tokens, source="default", sample_size=0, sliced=False, model=None)
    return blank._replace(**fields)


def a_line(name: str, tokens: int, score: float = 1.0, stage: int = 2, **fields: Any) -> TriageLine:
    """Return an agent of a review with its estimate, not selected."""
    blank = TriageLine(
        name=name, score=score, stage=stage, category="review", protected=stage == 1, est_tokens=tokens,
        source="default", sample_size=0, sliced=False, action="Deferred (budget)",
        est_billing=tokens, est_total=tokens,
    )  # fmt: skip
    return msgspec.structs.replace(blank, **fields)


def launched(name: str, tokens: int, stage: int = 1, action: TriageAction = "Selected", **fields: Any) -> TriageLine:
    """Return an agent of a review with its estimate, selected."""
    return a_line(name, tokens, stage=stage, action=action, **fields)


def a_triage(*lines: TriageLine, **fields: Any) -> Triage:
    """Return a review's triage with these agents."""
    blank = Triage(
        id="triage-1", at=NOW, run="r", session="s", last_key=0, input_type="plan", model="m", slicing=False,
        cost_basis="billing", enforcement="soft", min_agents=2, type_budget=150_000, sprint_remaining=None,
        sprint_constrained=False, budget=150_000, verdict="ok", override=None, agents=lines,
    )  # fmt: skip
    return msgspec.structs.replace(blank, **fields)
