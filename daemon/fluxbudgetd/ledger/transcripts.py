"""Transcripts as stored: how far each file has been read, and the responses found so far."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from fluxbudgetd.ledger.database import Database
from fluxbudgetd.model import QUOTED, ModelUsage, Response, TranscriptFile
from fluxbudgetd.threads import off_loop

# Like `FILE_COLUMNS`, in the order of the struct's fields.
_RESPONSE = (
    "key, session, message, has_request, born, place, is_final, file, at, agent, model,"
    " input, output, cache_read, cache_creation, cache_1h, is_fast, below"
)
#: A transcript's columns, as `stored_file` takes them.
FILE_COLUMNS = (
    "number, path, dev, ino, offset, mark, agent, skipped, anomalies,"
    " latest, is_gone, placeholders, stated_billing, stated_total, ends_turn"
)
# Only behind a relay does a session have so many responses under one message id.
_MOST_OF_MESSAGE = 8

_FIND = f"""
WITH RECURSIVE resolved(identity, key) AS (
  SELECT value, value FROM json_each(:identities)
  UNION ALL
  SELECT resolved.identity, aliases.response FROM resolved JOIN aliases ON aliases.identity = resolved.key
)
SELECT resolved.identity, {_RESPONSE} FROM resolved JOIN responses USING (key)
UNION ALL
SELECT NULL, {_RESPONSE} FROM responses WHERE born IN (
  SELECT found.born FROM json_each(:messages) AS wanted JOIN responses AS found ON found.born IN (
    SELECT born FROM responses INDEXED BY responses_message
    WHERE session = :session AND message = wanted.value ORDER BY born DESC LIMIT :most
  )
  UNION ALL
  SELECT (
    SELECT born FROM responses INDEXED BY responses_message
    WHERE session = :session AND message = json_extract(wanted.value, '$[0]')
    AND file = json_extract(wanted.value, '$[1]') AND place <> {QUOTED} ORDER BY born DESC LIMIT 1
  ) FROM json_each(:places) AS wanted
  UNION ALL
  SELECT (
    SELECT born FROM responses INDEXED BY responses_message
    WHERE session = :session AND message = json_extract(wanted.value, '$[0]')
    AND agent = json_extract(wanted.value, '$[1]') ORDER BY born DESC LIMIT 1
  ) FROM json_each(:quoted) AS wanted
  UNION ALL
  SELECT found.born FROM json_each(:replayed) AS wanted JOIN responses AS found ON found.born IN (
    SELECT born FROM responses INDEXED BY responses_message WHERE message = wanted.value LIMIT :most
  )
)
"""  # noqa: S608  our own names


def _marks(columns: str) -> str:
    return ",".join("?" * len(columns.split(",")))


# Takes half as long as INSERT OR REPLACE. A response's other columns never change.
_CHANGING = (
    "has_request", "place", "is_final", "file", "agent", "model",
    "input", "output", "cache_read", "cache_creation", "cache_1h", "is_fast", "below",
)  # fmt: skip
_PUT_RESPONSE = (
    f"INSERT INTO responses({_RESPONSE}) VALUES ({_marks(_RESPONSE)})"  # noqa: S608  our own names
    f" ON CONFLICT(key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _CHANGING)}"
)

_decode_below = msgspec.json.Decoder(tuple[ModelUsage, ...]).decode


class TranscriptChanges(NamedTuple):
    """What readings changed: the keys of the responses to delete, new or changed responses, and new aliases.

    `files` have new positions, each with its session. `sharing` are the sessions whose transcripts also hold usage that
    counts for other sessions.
    """

    gone: Sequence[int] = ()
    new: Sequence[Response] = ()
    aliases: Sequence[tuple[int, int]] = ()
    files: Sequence[tuple[str, TranscriptFile]] = ()
    sharing: Collection[str] = ()


class Wanted(NamedTuple):
    """What is looked up for a session's new copies: responses with one of the identities, and the last ones it has.

    `messages`: the last few of each message. `places`: the last one of each message and file that is not quoted.
    `quoted`: the last one of each message and agent. `replayed`: a few of each message, in all sessions.
    """

    identities: Collection[int]
    messages: Collection[int] = ()
    places: Collection[tuple[int, int]] = ()
    quoted: Collection[tuple[int, str]] = ()
    replayed: Collection[int] = ()


class StoredTranscripts:
    """Positions and responses; the two always agree."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sessions(self) -> tuple[set[str], set[str]]:
        """Return the sessions whose transcripts have been read, and those of them that hold other sessions' usage."""
        read = await self._database.rows("SELECT DISTINCT session FROM transcripts")
        sharing = await self._database.rows("SELECT session FROM sharing")
        return {session for (session,) in read}, {session for (session,) in sharing}

    async def last_born(self) -> int:
        """Return the number of the newest response, or 0."""
        ((born,),) = await self._database.rows("SELECT ifnull(max(born), 0) FROM responses")
        return int(born)

    async def files(self, session: str) -> tuple[TranscriptFile, ...]:
        """Return a session's files, and how far each has been read."""
        rows = await self._database.rows(
            f"SELECT {FILE_COLUMNS} FROM transcripts WHERE session = ? ORDER BY number",  # noqa: S608  our own names
            (session,),
        )
        return await off_loop(len(rows), _files, rows)

    async def responses(self, session: str) -> tuple[Response, ...]:
        """Return the responses that count for a session, oldest first."""
        # Sorted first, because reading the rows in the order of the index takes longer.
        rows = await self._database.rows(
            f"SELECT {_RESPONSE} FROM responses"  # noqa: S608  our own names
            " WHERE born IN (SELECT born FROM responses WHERE session = ?)",
            (session,),
        )
        return await off_loop(len(rows), _responses, rows)

    async def of_files(self, session: str, files: Collection[int]) -> tuple[Response, ...]:
        """Return the responses whose counting copies are in these files of a session."""
        rows = await self._database.rows(
            f"SELECT {_RESPONSE} FROM responses"  # noqa: S608  our own names
            " WHERE session = ? AND file IN (SELECT value FROM json_each(?))",
            (session, _json(files)),
        )
        return await off_loop(len(rows), _responses, rows)

    async def find(self, session: str, wanted: Wanted) -> tuple[tuple[Response, ...], dict[int, int]]:
        """Return the responses that a session's new copies may belong to, and the keys of their other identities.

        The cost depends on what is wanted, not on how much is stored.
        """
        parameters = await off_loop(sum(map(len, wanted)), _parameters, wanted)
        rows = await self._database.rows(_FIND, {**parameters, "session": session, "most": _MOST_OF_MESSAGE})
        return await off_loop(len(rows), _found, rows)

    async def responses_by_file(self, session: str) -> dict[int, int]:
        """Return, by file number, how many responses have their counting copy in the file."""
        sql = "SELECT file, count(*) FROM responses WHERE session = ? GROUP BY file"
        return dict(await self._database.rows(sql, (session,)))

    async def of_sub_agents(self, session: str) -> tuple[Response, ...]:
        """Return the responses that count for a session's sub-agents."""
        rows = await self._database.rows(
            f"SELECT {_RESPONSE} FROM responses"  # noqa: S608  our own names
            " WHERE born IN (SELECT born FROM responses WHERE session = ?) AND agent <> 'main-session'",
            (session,),
        )
        return await off_loop(len(rows), _responses, rows)

    async def save(self, changes: TranscriptChanges) -> None:
        """Bring responses and positions up to date, all in one transaction."""
        statements = await off_loop(len(changes.new) + len(changes.files), _statements, changes)
        async with self._database.transaction(durable=False) as transaction:
            for sql, rows in statements:
                if rows:
                    await transaction.executemany(sql, rows)


def _statements(changes: TranscriptChanges) -> list[tuple[str, Sequence[Sequence[object]]]]:
    return [
        ("DELETE FROM responses WHERE key = ?", [(key,) for key in changes.gone]),
        (_PUT_RESPONSE, list(map(_response_row, changes.new))),
        (_insert("aliases", "identity, response"), changes.aliases),
        (_insert("transcripts", f"session, {FILE_COLUMNS}"), [_file_row(*entry) for entry in changes.files]),
        (_insert("sharing", "session"), [(session,) for session in changes.sharing]),
    ]


def _insert(table: str, columns: str) -> str:
    return f"INSERT OR REPLACE INTO {table}({columns}) VALUES ({_marks(columns)})"  # noqa: S608  our own names


def _json(values: Iterable[Any]) -> str:
    # Sorted, so that SQLite reads each page of an index once.
    return msgspec.json.encode(sorted(values)).decode()


def _parameters(wanted: Wanted) -> dict[str, str]:
    return {name: _json(values) for name, values in wanted._asdict().items()}


def _signed(number: int) -> int:
    """Return an unsigned 64-bit number as the signed one that SQLite can store."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unsigned(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _file_row(session: str, file: TranscriptFile) -> tuple[object, ...]:
    number, path, dev, ino, *rest = msgspec.structs.astuple(file)
    return (session, number, path, _signed(dev), _signed(ino), *rest)


def _files(rows: Sequence[Sequence[Any]]) -> tuple[TranscriptFile, ...]:
    return tuple(map(stored_file, rows))


def stored_file(row: Sequence[Any]) -> TranscriptFile:
    """Return a transcript from its columns."""
    number, path, dev, ino, offset, mark, agent, skipped, anomalies, latest, is_gone, *rest = row
    counts = offset, mark, agent, skipped, anomalies, latest
    file = TranscriptFile(number, path, _unsigned(dev), _unsigned(ino), *counts, bool(is_gone), *rest)
    return msgspec.structs.replace(file, ends_turn=bool(file.ends_turn))


def _response_row(response: Response) -> tuple[object, ...]:
    # The sqlite3 module takes longer to store a bool than an int.
    return (
        response.key,
        response.session,
        response.message,
        int(response.has_request),
        response.born,
        response.place,
        int(response.is_final),
        response.file,
        response.at,
        response.agent,
        response.model,
        response.input,
        response.output,
        response.cache_read,
        response.cache_creation,
        response.cache_1h,
        int(response.is_fast),
        msgspec.json.encode(response.below) if response.below else None,
    )


def _response(row: Sequence[Any]) -> Response:
    key, session, message, has_request, born, place, is_final, file, at, agent, model, *tokens, is_fast, below = row
    input_, output, cache_read, cache_creation, cache_1h = tokens
    return Response(
        key,
        session,
        message,
        bool(has_request),
        born,
        place,
        bool(is_final),
        file,
        at,
        agent,
        model,
        input_,
        output,
        cache_read,
        cache_creation,
        cache_1h,
        bool(is_fast),
        () if below is None else _decode_below(below),
    )


def _responses(rows: Sequence[Sequence[Any]]) -> tuple[Response, ...]:
    return tuple(map(_response, rows))


def _found(rows: Sequence[Sequence[Any]]) -> tuple[tuple[Response, ...], dict[int, int]]:
    responses: dict[int, Response] = {}
    keys: dict[int, int] = {}
    for identity, *row in rows:
        key = row[0]
        if key not in responses:
            responses[key] = _response(row)
        if identity is not None and identity != key:
            keys[identity] = key
    return tuple(responses.values()), keys
