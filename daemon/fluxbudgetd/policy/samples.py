"""Samples: when a sub-agent has finished, and what its responses or its row add up to. Pure functions.

A sub-agent has finished if its end was reported, if its last response ends its turn, or if it has been silent for half
an hour, like a reservation. If it is resumed later, its next sample has more tokens and replaces the first one.

Whether a sample is of a slice, and of which round, is what the latest triage before its first usage that launched the
agent says. The triage is one of the session or, if it names no session, of a run of the session. A row of interstat has
only the time of its end, which is after the same triage.
"""

from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from fluxbudgetd.model import Counts, MeasuredRow, Response, Sample, TranscriptFile
from fluxbudgetd.policy.estimates import is_name, plain_name
from fluxbudgetd.policy.reservations import LIFETIME
from fluxbudgetd.policy.responses import has_usage, records
from fluxbudgetd.policy.review_agents import ReviewAgents
from fluxbudgetd.wire.messages import MAX_TOKENS

_MICROS_PER_MILLI = 1000


def has_finished(files: Collection[TranscriptFile], now: int, *, is_over: bool) -> bool:
    """Return True if a sub-agent with these transcripts has finished. `is_over`: its end was reported."""
    if is_over:
        return True
    newest = max(files, key=lambda file: file.number)
    latest = max((file.latest for file in files if file.latest is not None), default=None)
    # If the clock was set back, the latest time is in the future, perhaps for years.
    return newest.ends_turn or latest is None or abs(now - latest) >= LIFETIME


def of_responses(
    session: str, instance: str, agent: str, responses: Iterable[Response], reviews: ReviewAgents
) -> Sample | None:
    """Return the sample of a sub-agent's responses, or None if they have no usage or no agent can have this name.

    `reviews` are those that may have launched it. The sample's model is the one that used most.
    """
    counts, by_model = Counts(), Counter[str]()
    times: list[int] = []
    for response in filter(has_usage, responses):
        used = sum((record.counts for record in records(response)), Counts())
        counts += used
        by_model[response.model] += used.total
        if response.at is not None:
            times.append(response.at)
    name = plain_name(agent)
    if not counts.total or not is_name(name):
        return None
    input_ = min(counts.input, MAX_TOKENS)
    ((model, _),) = by_model.most_common(1)
    sample = Sample(
        session=session,
        instance=instance,
        agent=name,
        model=model,
        sliced=False,
        input=input_,
        output=min(counts.output, MAX_TOKENS - input_),
        total=min(counts.total, MAX_TOKENS),
        started_at=min(times, default=None),
        ended_at=max(times, default=None),
        source="transcripts",
    )
    return _of_review(sample, reviews)


def of_row(row: MeasuredRow, reviews: ReviewAgents) -> Sample | None:
    """Return the sample of a row of interstat, or None if it has no usage; `reviews` as above."""
    if not row.total:
        return None
    input_ = min(row.input, MAX_TOKENS)
    started_at = None
    if row.at is not None and row.milliseconds is not None:
        started_at = row.at - row.milliseconds * _MICROS_PER_MILLI
    sample = Sample(
        session=row.session,
        instance=f"row-{row.key}",
        agent=row.agent,
        model=row.model,
        sliced=False,
        input=input_,
        output=min(row.output, MAX_TOKENS - input_),
        total=min(row.total, MAX_TOKENS),
        started_at=started_at,
        ended_at=row.at,
        source="interstat",
    )
    return _of_review(sample, reviews)


def _of_review(sample: Sample, reviews: ReviewAgents) -> Sample:
    agent = reviews.selecting(sample)
    if agent is None:
        return sample
    return msgspec.structs.replace(sample, sliced=agent.line.sliced, round=agent.triage.round)
