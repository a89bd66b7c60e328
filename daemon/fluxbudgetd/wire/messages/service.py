"""The daemon itself: its identity, its sources and channels, what is wrong."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import Answer, Naming, Request
from fluxbudgetd.wire.messages.runs import RunLine
from fluxbudgetd.wire.messages.spend import SessionSources

ChannelState = Literal["ok", "off", "resting", "failing"]


class Ping(Request, frozen=True, tag="ping"):
    """Return the daemon's identity."""


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """Return the active runs (or one run by id, scope or session), the sources, and the unattributed usage."""

    run: str | None = None
    scope: str | None = None
    session: str | None = None
    after: str | None = None
    """A page's `next`: asks for the following page."""
    cwd: str | None = None
    """The client's working directory: if it has an intercore database, that is read first."""


class Loosen(Request, frozen=True, kw_only=True, tag="loosen"):
    """Ask for permission to do something that removes the runs' limits and that the daemon cannot prevent.

    The answer is the error `refused` if the client is inside a session and a hard limit is concerned. Otherwise the
    action is recorded as `run.loosened`.
    """

    action: Literal["uninstall"]
    """"uninstall": remove the service."""


class Sync(Naming, frozen=True, kw_only=True, tag="sync"):
    """Refresh adopted runs, and write what they have used into intercore's databases.

    If `[beads] write_back` is on, this also writes the labels of runs with a scope. Without `run`, `scope` and
    `session`, it applies to all followed runs of these kinds, and only `cwd` is used of the hints.
    """


class Doctor(Request, frozen=True, kw_only=True, tag="doctor"):
    """Return what the daemon knows to be wrong."""

    cwd: str | None = None
    """As for `status`."""


class SourceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A source and whether it can be read."""

    name: str
    path: str
    state: str
    """`ok`, or why it cannot be read: `unread` (not read yet), `absent`, `empty`, `locked`, `slow`, `corrupt`,
    `not_a_database`, `schema_drift`, `unreadable`, `read-only`."""
    detail: str
    hint: str
    since: str
    """When this state began."""
    notes: tuple[str, ...]
    """Problems that do not prevent reading (a missing index or optional column)."""
    anomalies: int
    """Counts that were dropped because they were negative or not whole numbers, in the followed sessions."""
    is_fault: bool = True
    """True: it cannot be read and is needed: it was configured, or a session of a followed run is counted from it."""


class DatabaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One of intercore's databases: whether it can be read, its runs, and the result of the last write-back."""

    path: str
    state: str
    """As in `SourceInfo`."""
    detail: str
    hint: str
    since: str
    """When this state began."""
    schema: int | None
    """Its schema version; null if it was never read."""
    runs: tuple[str, ...]
    """The ids of its followed runs, at most 200."""
    portfolios: tuple[str, ...] = ()
    """The ids of its portfolios' parents, which are not adopted, at most 200."""
    written_at: str | None = None
    """When our rows were last written since the daemon started; null: not yet."""
    write_state: str = ""
    """`ok`, `off`, `waiting` (nothing to write yet), or the reason why nothing can be written."""
    write_fault: str = ""
    """The details of that reason; otherwise empty."""


class ChannelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A channel that delivers warnings, and whether it works."""

    name: str
    state: ChannelState
    """`resting`: there is nothing to deliver to (no desktop session); the daemon tries again."""
    detail: str
    hint: str
    since: str
    """When this state began."""
    told: int
    """The number of the last event that the channel has handled."""
    waiting: int
    """How many events it has not handled yet."""


class Unattributed(msgspec.Struct, frozen=True, kw_only=True):
    """Usage that belongs to no run, among the latest 10 000 rows and the followed sessions."""

    sessions: int
    billing: int
    total: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A problem and what to do about it."""

    what: str
    hint: str


class LoosenAnswer(Answer, frozen=True, kw_only=True, tag="loosen"):
    """The client may carry out the action. The events are on disk."""


class SyncAnswer(Answer, frozen=True, kw_only=True, tag="sync"):
    """What `sync` did. Runs that are neither adopted nor have a bead cannot be written back."""

    runs: tuple[str, ...]
    """The runs that the request meant."""
    faults: tuple[Finding, ...]
    """What could not be written or is out of date, and why; empty if everything is written."""


class PingAnswer(Answer, frozen=True, kw_only=True, tag="ping"):
    """The daemon's identity."""

    version: str
    protocol: int
    pid: int
    started_at: str


class StatusAnswer(Answer, frozen=True, kw_only=True, tag="status"):
    """The requested runs, newest first, in pages."""

    runs: tuple[RunLine, ...]
    next: str | None
    """Send this as `after` to get the following page; null on the last page."""
    sources: tuple[SourceInfo, ...]
    unattributed: Unattributed
    databases: tuple[DatabaseInfo, ...] = ()


class DoctorAnswer(Answer, frozen=True, kw_only=True, tag="doctor"):
    """The daemon's state, and what is wrong."""

    version: str
    pid: int
    state_dir: str
    ledger: str
    sources: tuple[SourceInfo, ...]
    sessions: tuple[SessionSources, ...]
    """What each source says about each followed session, those that differ first; at most 200 sessions."""
    findings: tuple[Finding, ...]
    active_runs: int
    followed_runs: int
    connections: int
    channels: tuple[ChannelInfo, ...] = ()
    databases: tuple[DatabaseInfo, ...] = ()
    news: str = ""
    """What a person should know although nothing is wrong, announced once; otherwise empty."""
