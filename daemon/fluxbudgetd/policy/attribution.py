"""Which run a usage record belongs to.

First match:

1. its bead names a run's scope: that run;
2. its session was attached to a run at the record's time: that run.

A session's first attachment, made by a person or by a hook, counts the session's usage from the start of the run on, or
all of it if that was requested. A later attachment counts from when it was made, and ends the one before. A session
without any attachment counts as attached, from its beginning, to the run that its earliest row with a known bead names
(`implied_attachment`).

What matches nothing belongs to no run. If it is too old for the session's first attachment, it is *earlier* usage,
shown with that attachment's run; everything else is unattributed.

A time on a whole second stands for that whole second, because some writers have no fractions; likewise one on a whole
millisecond, because transcripts have no more digits. Of two attachments that meet within it, the older one counts.

Several runs may have had one scope, one after the other: a record belongs to the last one that had started at its time,
or to the first if it is older than all. A record without a readable time counts as the newest.
"""

from collections.abc import Iterable, Mapping, Sequence

from fluxbudgetd.model import Attachment, Cell, Counts, Run, Stint, Timeline, Usage

#: scope → its runs, oldest first
Scopes = Mapping[str, Sequence[Run]]


def run_of_scope(bead: str, at: int | None, scopes: Scopes) -> Run | None:
    """Return the run that a bead meant at a time, or None."""
    runs = scopes.get(bead) if bead else None
    if not runs:
        return None
    if at is None:
        return runs[-1]
    started = [run for run in runs if run.started_at <= at]
    return started[-1] if started else runs[0]


def implied_attachment(session: str, records: Iterable[Usage], scopes: Scopes) -> Attachment | None:
    """Return the attachment that a session's rows imply, or None if no row names a known run."""
    named = [
        (record.at is None, record.at or 0, record.key, run)
        for record in records
        if (run := run_of_scope(record.bead, record.at, scopes)) is not None
    ]
    if not named:
        return None
    run = min(named, key=lambda entry: entry[:3])[3]
    return Attachment(session=session, run=run.id, since=0, until=None, counts_from=0, origin="bead")


def owner(record: Usage, scopes: Scopes, attachments: Iterable[Attachment]) -> str | None:
    """Return the id of the run that a record belongs to, or None."""
    run = run_of_scope(record.bead, record.at, scopes)
    if run is not None:
        return run.id
    for attachment in attachments:
        if attachment.covers(record.at):
            return attachment.run
    return None


def earlier_for(record: Usage, attachments: Sequence[Attachment]) -> str | None:
    """Return the run of the session's first attachment if the record is too old for it, otherwise None."""
    if record.at is None or not attachments or not attachments[0].follows(record.at):
        return None
    return attachments[0].run


def phase_of(record: Usage, timeline: Timeline | None) -> str:
    """Return the phase that a record counts for: its own if the run has it, otherwise the run's at that time."""
    if timeline is None or record.phase in timeline.run.phases:
        return record.phase
    return timeline.phase_at(record.at)


def tally(
    records: Iterable[Usage],
    scopes: Scopes,
    attachments: Sequence[Attachment],
    timelines: Mapping[str, Timeline],
) -> dict[Cell, Counts]:
    """Return one session's usage, summed by run, phase, agent and model. Every record is in exactly one cell.

    `attachments` are the session's, oldest first.
    """
    sums: dict[Cell, list[int]] = {}
    for record in records:
        run_id = owner(record, scopes, attachments)
        timeline = None if run_id is None else timelines.get(run_id)
        earlier = earlier_for(record, attachments) if run_id is None else None
        cell = Cell(run_id, phase_of(record, timeline), record.agent, record.model, earlier)
        row = sums.setdefault(cell, [0, 0, 0, 0, 0, 0])
        row[0] += 1
        row[1] += record.pending
        row[2] += record.input
        row[3] += record.output
        row[4] += record.cache_read
        row[5] += record.cache_creation
    return {cell: Counts(*row) for cell, row in sums.items()}


def earliest(records: Iterable[Usage], attachments: Sequence[Attachment]) -> int | None:
    """Return the time of a session's first record that is not too old for its attachments, or None."""
    widest = min(attachments, key=lambda attachment: attachment.counts_from, default=None)
    times = (record.at for record in records if record.at is not None)
    return min((at for at in times if widest is None or not widest.follows(at)), default=None)


def stint(attachment: Attachment, first_record: int | None, *, measured: bool) -> Stint:
    """Return the period that an attachment covers; it starts at the first record that counts, if that was earlier."""
    since = attachment.since
    if first_record is not None:
        counted = max(first_record, attachment.counts_from)
        # An implied attachment has no beginning of its own.
        since = counted if attachment.origin == "bead" else min(since, counted)
    return Stint(since, attachment.until, measured)
