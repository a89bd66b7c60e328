"""The ledger's schema, as steps: step N takes a file from `user_version` N to N + 1.

A released step is never edited; a change is a new step at the end. Every version has a fixture in `tests/fixtures/`
that must still open.
"""

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
    """,
)

VERSION = len(STEPS)
