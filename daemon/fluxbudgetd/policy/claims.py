"""How claims in intercore's database attach sessions to runs.

A claim attaches a session from the claim's time on. If it is the session's first attachment, the whole session counts.
A claim never undoes what was done later: if a person or a hook attaches or detaches the session after it, that wins. A
claim's time is a whole second, and stands for all of that second.
"""

from collections.abc import Sequence

import msgspec

from fluxbudgetd.model import Attachment, SessionClaim

_SECOND = 1_000_000


def attachments(claim: SessionClaim, run: str, current: Sequence[Attachment]) -> tuple[Attachment, ...]:
    """Return the attachments to write because of a claim; none if nothing changes.

    `current` are the session's attachments that count, oldest first.
    """
    last = current[-1] if current else None
    if last is None:
        return (_new(claim, run, max(claim.at, 0), counts_from=0),)
    if last.run == run and last.until is None:
        is_wider = len(current) == 1 and last.counts_from > 0
        return (msgspec.structs.replace(last, counts_from=0),) if is_wider else ()
    changed_at = last.since if last.until is None else last.until
    if changed_at >= claim.at + _SECOND:
        return ()
    since = max(claim.at, changed_at + 1)
    new = _new(claim, run, since, counts_from=since)
    return (new,) if last.until is not None else (msgspec.structs.replace(last, until=since), new)


def _new(claim: SessionClaim, run: str, since: int, counts_from: int) -> Attachment:
    return Attachment(session=claim.session, run=run, since=since, until=None, counts_from=counts_from, origin="claim")
