"""The ledger's schema, as steps: step N takes a file from `user_version` N to N + 1.

A released step is never edited; a change is a new step at the end. Every version has a fixture in `tests/fixtures/`
that must still open. The steps use SQL functions that `add_functions` defines; those are never edited either.
"""

import sqlite3
from hashlib import blake2b

#: `PRAGMA application_id` of a ledger ("flxb"): distinguishes it from other SQLite files.
APPLICATION_ID = 0x666C7862

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE runs(
      id TEXT PRIMARY KEY NOT NULL,
      scope TEXT,
      status TEXT NOT NULL CHECK (status IN ('active', 'done', 'cancelled')),
      started_at INTEGER NOT NULL,
      ended_at INTEGER,
      run BLOB NOT NULL,          -- JSON of the run as it is now
      started_as BLOB NOT NULL    -- JSON of the run as it was started
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX runs_active_scope ON runs(scope) WHERE status = 'active' AND scope IS NOT NULL;

    CREATE TABLE attachments(
      session TEXT NOT NULL,
      since INTEGER NOT NULL,
      until INTEGER,
      run TEXT NOT NULL REFERENCES runs(id),
      first INTEGER NOT NULL,
      origin TEXT NOT NULL CHECK (origin IN ('asked', 'bead')),
      PRIMARY KEY (session, since)
    ) WITHOUT ROWID;

    CREATE TABLE usage(
      session TEXT NOT NULL,
      source TEXT NOT NULL,
      key INTEGER NOT NULL,       -- names the record within its session and source
      at INTEGER,
      agent TEXT NOT NULL,
      model TEXT NOT NULL,
      bead TEXT NOT NULL,
      phase TEXT NOT NULL,
      pending INTEGER NOT NULL,
      input INTEGER NOT NULL,
      output INTEGER NOT NULL,
      cache_read INTEGER NOT NULL,
      cache_creation INTEGER NOT NULL,
      PRIMARY KEY (session, source, key)
    ) WITHOUT ROWID;
    CREATE INDEX usage_bead ON usage(bead, session) WHERE bead <> '';

    CREATE TABLE events(
      seq INTEGER PRIMARY KEY AUTOINCREMENT,
      at INTEGER NOT NULL,
      run TEXT,
      kind TEXT NOT NULL,
      data BLOB NOT NULL          -- JSON
    );
    CREATE INDEX events_kind ON events(kind, seq);
    """,
    """
    CREATE TABLE phases(
      run TEXT NOT NULL REFERENCES runs(id),
      number INTEGER NOT NULL,    -- 0 is the first phase that the run completed
      record BLOB NOT NULL,       -- JSON
      PRIMARY KEY (run, number)
    ) WITHOUT ROWID;

    CREATE TABLE thresholds(
      run TEXT NOT NULL REFERENCES runs(id),
      kind TEXT NOT NULL,         -- the event's
      pct INTEGER NOT NULL,       -- of the run's present budget
      PRIMARY KEY (run, kind, pct)
    ) WITHOUT ROWID;

    CREATE TABLE triages(
      id TEXT PRIMARY KEY NOT NULL,
      run TEXT REFERENCES runs(id),
      session TEXT,
      at INTEGER NOT NULL,
      triage BLOB NOT NULL        -- JSON
    ) WITHOUT ROWID;
    CREATE INDEX triages_run ON triages(run, at);
    CREATE INDEX triages_session ON triages(session, at);
    """,
    """
    CREATE TABLE transcripts(
      session TEXT NOT NULL,
      number INTEGER NOT NULL,    -- names the file within the session for ever
      path TEXT NOT NULL,
      dev INTEGER NOT NULL,
      ino INTEGER NOT NULL,
      offset INTEGER NOT NULL,    -- so far it has been read; what that gave is in responses
      mark BLOB NOT NULL,
      agent TEXT NOT NULL,
      skipped INTEGER NOT NULL,
      anomalies INTEGER NOT NULL,
      PRIMARY KEY (session, number)
    ) WITHOUT ROWID;

    CREATE TABLE responses(
      session TEXT NOT NULL,
      message INTEGER NOT NULL,
      key INTEGER NOT NULL,
      sidechain INTEGER NOT NULL,
      file INTEGER NOT NULL,
      at INTEGER,
      agent TEXT NOT NULL,
      model TEXT NOT NULL,
      input INTEGER NOT NULL,
      output INTEGER NOT NULL,
      cache_read INTEGER NOT NULL,
      cache_creation INTEGER NOT NULL,
      PRIMARY KEY (session, message, key)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE channels(
      name TEXT PRIMARY KEY NOT NULL,
      seq INTEGER NOT NULL        -- of the last event that the channel is done with
    ) WITHOUT ROWID;

    CREATE TABLE told(
      session TEXT NOT NULL,
      run TEXT NOT NULL REFERENCES runs(id),
      seq INTEGER NOT NULL,       -- of the last warning that the session was told of the run
      PRIMARY KEY (session, run)
    ) WITHOUT ROWID;

    CREATE TABLE reservations(
      id INTEGER PRIMARY KEY NOT NULL,
      run TEXT NOT NULL REFERENCES runs(id),
      session TEXT NOT NULL,
      agent TEXT NOT NULL,
      tokens INTEGER NOT NULL,    -- of the run's cost basis
      at INTEGER NOT NULL,
      agent_id TEXT,
      ended_at INTEGER,
      call TEXT                   -- the tool call that launches it
    );

    CREATE INDEX events_run ON events(run, seq);
    """,
    """
    ALTER TABLE attachments RENAME TO attachments_4;
    CREATE TABLE attachments(
      session TEXT NOT NULL,
      since INTEGER NOT NULL,
      until INTEGER,
      run TEXT NOT NULL REFERENCES runs(id),
      counts_from INTEGER NOT NULL,  -- 0: the whole session
      origin TEXT NOT NULL CHECK (origin IN ('asked', 'bead')),
      PRIMARY KEY (session, since)
    ) WITHOUT ROWID;
    INSERT INTO attachments(session, since, until, run, counts_from, origin)
      SELECT session, since, until, run, CASE WHEN first THEN 0 ELSE since END, origin FROM attachments_4;
    DROP TABLE attachments_4;

    ALTER TABLE responses RENAME TO responses_by_session;

    CREATE TABLE responses(
      key INTEGER NOT NULL UNIQUE,    -- identifies the response in all sessions
      session TEXT NOT NULL,          -- the first that had it
      message INTEGER NOT NULL,
      has_request INTEGER NOT NULL,
      born INTEGER PRIMARY KEY NOT NULL,    -- grows with each response that is found
      place INTEGER NOT NULL,
      is_final INTEGER NOT NULL,
      file INTEGER NOT NULL,
      at INTEGER,
      agent TEXT NOT NULL,
      model TEXT NOT NULL,
      input INTEGER NOT NULL,
      output INTEGER NOT NULL,
      cache_read INTEGER NOT NULL,
      cache_creation INTEGER NOT NULL,
      cache_1h INTEGER NOT NULL,
      is_fast INTEGER NOT NULL,
      below BLOB                      -- JSON; NULL if the top level includes everything
    );
    CREATE INDEX responses_message ON responses(message, session);
    CREATE INDEX responses_file ON responses(session, file);

    CREATE TABLE aliases(
      identity INTEGER PRIMARY KEY NOT NULL,
      response INTEGER NOT NULL       -- its key, or another of its identities
    );

    -- The sessions whose transcripts also hold usage that counts for another session.
    CREATE TABLE sharing(session TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;

    -- A response with a request id that was counted in several sessions stays with the one that was attached first. One
    -- without a request id is final: a line that does not match it is another response.
    INSERT OR IGNORE INTO responses(
      key, session, message, has_request, place, is_final, file, at, agent, model,
      input, output, cache_read, cache_creation, cache_1h, is_fast
    )
    SELECT
      iif(has_request, key, session_key(session, message)), session, message, has_request, sidechain, NOT has_request,
      file, at, agent, model, input, output, cache_read, cache_creation, 0, 0
    FROM (SELECT *, key <> requestless_key(message) AS has_request FROM responses_by_session)
    LEFT JOIN (SELECT session, min(since) AS since FROM attachments GROUP BY session) USING (session)
    ORDER BY since IS NULL, since, session, file, at, message;

    INSERT INTO sharing
    SELECT DISTINCT other.session FROM responses_by_session AS other JOIN responses USING (key)
    WHERE other.session <> responses.session;

    INSERT INTO events(at, run, kind, data)
    SELECT
      CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER),
      (SELECT run FROM attachments WHERE session = other.session AND until IS NULL ORDER BY since DESC LIMIT 1),
      'usage.corrected',
      CAST(json_object(
        'session', other.session,
        'responses', count(*),
        'billing', sum(other.input + other.output),
        'total', sum(other.input + other.output + other.cache_read + other.cache_creation)
      ) AS BLOB)
    FROM responses_by_session AS other JOIN responses USING (key)
    WHERE other.session <> responses.session
    GROUP BY other.session
    HAVING sum(other.input + other.output + other.cache_read + other.cache_creation) > 0
    ORDER BY other.session;

    DROP TABLE responses_by_session;

    ALTER TABLE transcripts ADD COLUMN latest INTEGER;
    ALTER TABLE transcripts ADD COLUMN is_gone INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE transcripts ADD COLUMN placeholders TEXT NOT NULL DEFAULT '';
    ALTER TABLE transcripts ADD COLUMN stated_billing INTEGER;
    ALTER TABLE transcripts ADD COLUMN stated_total INTEGER;

    -- The directories of Claude Code that a hook has named.
    CREATE TABLE claude_dirs(path TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;
    """,
    """
    ALTER TABLE told RENAME TO told_5;
    CREATE TABLE told(
      session TEXT NOT NULL,
      run TEXT NOT NULL REFERENCES runs(id),
      agent TEXT NOT NULL,        -- the sub-agent's id; '' for the main loop
      seq INTEGER NOT NULL,       -- of the last warning about the run that it was given
      PRIMARY KEY (run, session, agent)
    ) WITHOUT ROWID;
    INSERT INTO told(session, run, agent, seq) SELECT session, run, '', seq FROM told_5;
    DROP TABLE told_5;

    ALTER TABLE events ADD COLUMN by BLOB;  -- JSON of the process that caused it; NULL: the daemon itself, or not known

    -- The processes in which sessions run, or have run.
    CREATE TABLE session_processes(
      pid INTEGER NOT NULL,
      started INTEGER NOT NULL,   -- in clock ticks after boot
      session TEXT NOT NULL,
      PRIMARY KEY (pid, started, session)
    );

    ALTER TABLE reservations ADD COLUMN parent TEXT;                     -- the sub-agent that launches it
    ALTER TABLE reservations ADD COLUMN resumes TEXT;                    -- the finished sub-agent that it resumes
    ALTER TABLE reservations ADD COLUMN base INTEGER NOT NULL DEFAULT 0; -- what it had used before
    ALTER TABLE reservations ADD COLUMN seen_at INTEGER NOT NULL DEFAULT 0;
    UPDATE reservations SET seen_at = at;
    """,
    """
    ALTER TABLE transcripts ADD COLUMN ends_turn INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE transcripts ADD COLUMN is_sampled INTEGER NOT NULL DEFAULT 0;  -- a new position resets it
    CREATE INDEX transcripts_unsampled ON transcripts(session)
      WHERE is_sampled = 0 AND agent <> 'main-session' AND number > 0;

    CREATE TABLE samples(
      session TEXT NOT NULL,
      instance TEXT NOT NULL,     -- identifies the sub-agent within its session
      agent TEXT NOT NULL,
      model TEXT NOT NULL,
      sliced INTEGER NOT NULL,
      input INTEGER NOT NULL,
      output INTEGER NOT NULL,
      total INTEGER NOT NULL,
      started_at INTEGER,
      ended_at INTEGER,
      source TEXT NOT NULL,
      round TEXT NOT NULL,        -- of the review that launched it
      PRIMARY KEY (session, instance)
    );
    CREATE INDEX samples_agent ON samples(agent, ended_at);

    -- What people were told once, and the value that they were told last.
    CREATE TABLE announced(name TEXT PRIMARY KEY NOT NULL, value TEXT NOT NULL) WITHOUT ROWID;
    """,
    """
    -- 'claim': a claim or an attribution in intercore's database.
    ALTER TABLE attachments RENAME TO attachments_7;
    CREATE TABLE attachments(
      session TEXT NOT NULL,
      since INTEGER NOT NULL,
      until INTEGER,
      run TEXT NOT NULL REFERENCES runs(id),
      counts_from INTEGER NOT NULL,  -- 0: the whole session
      origin TEXT NOT NULL CHECK (origin IN ('asked', 'bead', 'claim')),
      PRIMARY KEY (session, since)
    ) WITHOUT ROWID;
    INSERT INTO attachments(session, since, until, run, counts_from, origin)
      SELECT session, since, until, run, counts_from, origin FROM attachments_7;
    DROP TABLE attachments_7;

    -- intercore allows two active runs of one bead; the scope then means the newest.
    DROP INDEX runs_active_scope;

    -- Other programs' dispatches: `session` is the run's id.
    CREATE INDEX usage_intercore ON usage(session) WHERE source = 'intercore';
    """,
)

VERSION = len(STEPS)


def add_functions(connection: sqlite3.Connection) -> None:
    """Define the SQL functions that the steps use."""
    connection.create_function("requestless_key", 1, _requestless_key, deterministic=True)
    connection.create_function("session_key", 2, _session_key, deterministic=True)


def _requestless_key(message: int) -> int:
    """Return the key that version 4 gave a response without a request id."""
    return _digest(message.to_bytes(8), b"request")


def _session_key(session: str, message: int) -> int:
    """Return a key for a response without a request id, which no other session has."""
    return _digest(message.to_bytes(8) + session.encode(), b"session")


def _digest(raw: bytes, kind: bytes) -> int:
    return int.from_bytes(blake2b(raw, digest_size=8, person=kind).digest()) >> 1
