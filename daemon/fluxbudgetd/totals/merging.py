"""Merging what was read from a session's transcripts into the known copies: pure functions, for any thread."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fluxbudgetd.model import Copy, TranscriptReading, Usage
from fluxbudgetd.sources.transcripts import merged

#: Message → the copies that count.
Known = dict[int, tuple[Copy, ...]]
#: (message, key) → the copy that counts; None if it no longer counts.
Changes = dict[tuple[int, int], Copy | None]


class Delta(NamedTuple):
    """What a reading changes: the copies that no longer count, and those that now count."""

    gone: tuple[Copy, ...]
    new: tuple[Copy, ...]


class Merge(NamedTuple):
    """What a reading changes: each changed message's copies (none if it is gone), the same by key, and as a delta."""

    touched: Known
    changes: Changes
    delta: Delta


def merge(known: Mapping[int, tuple[Copy, ...]], reading: TranscriptReading) -> Merge:
    """Return how a reading changes the known copies."""
    touched: Known = {}
    for message, copies in known.items() if reading.reset else ():
        kept = tuple(copy for copy in copies if copy.file not in (reading.reset or ()))
        if len(kept) != len(copies):
            touched[message] = kept
    for new in reading.copies:
        copies = touched[new.message] if new.message in touched else known.get(new.message, ())
        gone, added = merged(copies, new)
        if gone or added:
            touched[new.message] = (*(copy for copy in copies if copy not in gone), *added)
    changes: Changes = {}
    less: list[Copy] = []
    more: list[Copy] = []
    for message, copies in touched.items():
        old = known.get(message, ())
        changes.update({(copy.message, copy.key): None for copy in old})
        changes.update({(copy.message, copy.key): copy for copy in copies})
        less += (copy for copy in old if copy not in copies)
        more += (copy for copy in copies if copy not in old)
    return Merge(touched, changes, Delta(tuple(less), tuple(more)))


def with_changes(copies: Iterable[Copy], changes: Changes) -> Known:
    """Apply changes to copies; return the copies that count, by message."""
    by_key = {(copy.message, copy.key): copy for copy in copies}
    for key, copy in changes.items():
        if copy is None:
            by_key.pop(key, None)
        else:
            by_key[key] = copy
    known: Known = {}
    for copy in by_key.values():
        known[copy.message] = (*known.get(copy.message, ()), copy)
    return known


def usages(known: Known) -> tuple[Usage, ...]:
    """Return all known copies as usage records."""
    return tuple(usage(copy) for copies in known.values() for copy in copies)


def usage(copy: Copy) -> Usage:
    """Return a response as a usage record; it belongs to a run by its session and time alone."""
    return Usage(
        key=copy.key,
        at=copy.at,
        agent=copy.agent,
        model=copy.model,
        bead="",
        phase="",
        pending=False,
        input=copy.input,
        output=copy.output,
        cache_read=copy.cache_read,
        cache_creation=copy.cache_creation,
    )
