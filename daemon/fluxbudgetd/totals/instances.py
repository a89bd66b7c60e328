"""What the sub-agents of a watched session have used. Admission watches the sessions that have reservations."""

from collections.abc import Iterable

import msgspec

from fluxbudgetd.model import Counts, Instance, Response, Usage
from fluxbudgetd.policy.responses import Delta, has_usage, records
from fluxbudgetd.sources.transcripts import MAIN, agent_id
from fluxbudgetd.totals.transcript_store import TranscriptStore


class _Used(msgspec.Struct):
    """The usage in one file: when it was first and last, and how much."""

    first: int | None = None
    last: int | None = None
    counts: Counts = Counts()


class Load:
    """What has changed in a session's responses while they are read from the ledger, by key (None: it is gone)."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.changed: dict[int, Response | None] = {}


class Instances:
    """The sub-agents of watched sessions, as their transcripts show them and as interstat's rows do.

    A session is watched once its responses so far were read from the ledger: `begin`, read them, `finish`. Everything
    but `is_watched`, `unwatch` and the `from_` methods is called under the tally lock, so that each response is counted
    exactly once.
    """

    def __init__(self, transcripts: TranscriptStore) -> None:
        self._transcripts = transcripts
        self._rows: dict[str, tuple[Instance, ...]] = {}
        # By session, then by the number of the file.
        self._used: dict[str, dict[int, _Used]] = {}
        self._loads: list[Load] = []

    @property
    def watched(self) -> set[str]:
        """The watched sessions."""
        return {*self._rows, *self._used}

    def is_watched(self, session: str) -> bool:
        """Return True if the usage in a session's transcripts is known and followed."""
        return session in self._used

    def begin(self, session: str) -> Load:
        """Follow a session's rows, and collect how its responses change until `finish` or `abandon`."""
        self._rows.setdefault(session, ())
        load = Load(session)
        self._loads.append(load)
        return load

    def finish(self, load: Load, responses: Iterable[Response]) -> None:
        """Watch a session from now on. `responses` are those of its sub-agents, read after `begin`."""
        if load.session in self._used:
            return
        found: dict[int, Response | None] = {response.key: response for response in responses}
        found.update(load.changed)
        used: dict[int, _Used] = {}
        _add(used, (response for response in found.values() if response is not None))
        self._used[load.session] = used

    def abandon(self, load: Load) -> None:
        """Stop collecting changes for a load that has finished or failed."""
        self._loads.remove(load)

    def unwatch(self, session: str) -> None:
        """Stop watching a session."""
        self._rows.pop(session, None)
        self._used.pop(session, None)

    def note_rows(self, session: str, records: Iterable[Usage]) -> None:
        """Replace what a session's rows show, if it is watched."""
        if session in self._rows:
            self._rows[session] = tuple(
                Instance(session, record.agent, None, record.at)
                for record in records
                if record.at is not None and record.agent != MAIN
            )

    def note_responses(self, session: str, delta: Delta) -> None:
        """Note how a session's responses have changed."""
        for load in self._loads:
            if load.session == session:
                load.changed.update({response.key: None for response in delta.gone})
                load.changed.update({response.key: response for response in delta.new})
        used = self._used.get(session)
        if used is not None:
            for response in delta.gone:
                file = used.setdefault(response.file, _Used())
                file.counts = file.counts - _counts(response)
            _add(used, delta.new)

    def from_rows(self, session: str) -> tuple[Instance, ...]:
        """Return the sub-agents that have a row. They have ended, even if they are not measured yet."""
        return self._rows.get(session, ())

    def from_transcripts(self, session: str) -> dict[str, Instance]:
        """Return the sub-agents that have a transcript, by their ids."""
        found: dict[str, Instance] = {}
        used = self._used.get(session, {})
        calls = self._transcripts.calls.get(session, {})
        for file in self._transcripts.files.get(session, ()):
            name = None if file.agent == MAIN else agent_id(file.path)
            if name is not None:
                of_file = used.get(file.number, _Used())
                call = calls.get(file.number)
                known = found.get(name)
                found[name] = Instance(
                    session,
                    file.agent,
                    name,
                    _earliest(of_file.first, known and known.at),
                    _latest(of_file.last, known and known.last),
                    call or (known and known.call),
                    of_file.counts + known.counts if known else of_file.counts,
                )
        return found


def _add(used: dict[int, _Used], responses: Iterable[Response]) -> None:
    for response in responses:
        if has_usage(response):
            file = used.setdefault(response.file, _Used())
            file.first = _earliest(file.first, response.at)
            file.last = _latest(file.last, response.at)
            file.counts = file.counts + _counts(response)


def _counts(response: Response) -> Counts:
    return sum((record.counts for record in records(response)), Counts())


def _earliest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _latest(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
