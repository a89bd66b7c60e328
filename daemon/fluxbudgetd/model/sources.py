"""What is read from sources, and the state of a source."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from fluxbudgetd.model.usage import Usage

SourceState = Literal[
    "ok",
    "unread",
    "absent",
    "empty",
    "locked",
    "slow",
    "corrupt",
    "not_a_database",
    "schema_drift",
    "unreadable",
    "read-only",
]


class SourceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a source and, if it cannot be read, why and what to do about it."""

    name: str
    path: str
    state: SourceState
    detail: str = ""
    hint: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Return True if the source was read, so its numbers are current."""
        return self.state == "ok"


class SessionSnapshot(msgspec.Struct, frozen=True):
    """A session's whole usage in one source. It replaces the previous snapshot.

    `digest` changes if the rows change. `records` is None if the caller already knows this digest.
    """

    digest: int
    records: tuple[Usage, ...] | None
    anomalies: int = 0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The result of reading a source once. Empty unless `status.is_readable`."""

    status: SourceStatus
    sessions: Mapping[str, SessionSnapshot] = {}
    by_scope: Mapping[str, tuple[str, ...]] = {}
    """scope → the sessions with a row that names it"""
