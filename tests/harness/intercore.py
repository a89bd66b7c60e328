"""A project with intercore's database, and the writes of `ic`: each opens the database, commits once and closes it."""

import json
import secrets
import sqlite3
import string
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

#: The phases of a run that names none.
DEFAULT_CHAIN = (
    "brainstorm",
    "brainstorm-reviewed",
    "strategized",
    "planned",
    "executing",
    "review",
    "polish",
    "reflect",
    "done",
)
GOAL_CHAIN = ("goal-formed", "planned", "executing", "review", "polish", "reflect", "done")
NEWEST = 39

# What each version adds to the tables that we read and write, and some that we do not.
_STEPS = {
    6: """
CREATE TABLE state(key TEXT NOT NULL, scope_id TEXT NOT NULL, payload TEXT NOT NULL,
  updated_at INTEGER NOT NULL DEFAULT (unixepoch()), expires_at INTEGER, PRIMARY KEY (key, scope_id));
CREATE INDEX state_by_scope ON state(scope_id, key);
CREATE TABLE dispatches(id TEXT NOT NULL PRIMARY KEY, agent_type TEXT NOT NULL DEFAULT 'codex',
  status TEXT NOT NULL DEFAULT 'spawned', project_dir TEXT NOT NULL, prompt_file TEXT, pid INTEGER, exit_code INTEGER,
  name TEXT, model TEXT, sandbox TEXT DEFAULT 'workspace-write', turns INTEGER DEFAULT 0,
  input_tokens INTEGER DEFAULT 0, output_tokens INTEGER DEFAULT 0,
  created_at INTEGER NOT NULL DEFAULT (unixepoch()), started_at INTEGER, completed_at INTEGER, verdict_status TEXT,
  error_message TEXT, scope_id TEXT, parent_id TEXT, cache_hits INTEGER);
CREATE INDEX dispatches_by_scope ON dispatches(scope_id) WHERE scope_id IS NOT NULL;
CREATE TABLE runs(id TEXT NOT NULL PRIMARY KEY, project_dir TEXT NOT NULL, goal TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'active', phase TEXT NOT NULL DEFAULT 'brainstorm',
  complexity INTEGER NOT NULL DEFAULT 3, auto_advance INTEGER NOT NULL DEFAULT 1,
  created_at INTEGER NOT NULL DEFAULT (unixepoch()), updated_at INTEGER NOT NULL DEFAULT (unixepoch()),
  completed_at INTEGER, scope_id TEXT, metadata TEXT, phases TEXT, token_budget INTEGER,
  budget_warn_pct INTEGER DEFAULT 80);
CREATE INDEX runs_by_status ON runs(status) WHERE status = 'active';
CREATE TABLE phase_events(id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id),
  from_phase TEXT NOT NULL, to_phase TEXT NOT NULL, event_type TEXT NOT NULL DEFAULT 'advance', gate_result TEXT,
  reason TEXT, created_at INTEGER NOT NULL DEFAULT (unixepoch()));
CREATE INDEX phase_events_by_run ON phase_events(run_id);
CREATE TABLE run_agents(id TEXT NOT NULL PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs(id),
  agent_type TEXT NOT NULL DEFAULT 'claude', name TEXT, status TEXT NOT NULL DEFAULT 'active', dispatch_id TEXT,
  created_at INTEGER NOT NULL DEFAULT (unixepoch()), updated_at INTEGER NOT NULL DEFAULT (unixepoch()));
CREATE INDEX run_agents_by_run ON run_agents(run_id);
""",
    20: """
ALTER TABLE runs ADD COLUMN parent_run_id TEXT;
ALTER TABLE runs ADD COLUMN max_dispatches INTEGER DEFAULT 0;
ALTER TABLE runs ADD COLUMN budget_enforce INTEGER DEFAULT 0;
ALTER TABLE runs ADD COLUMN max_agents INTEGER DEFAULT 0;
ALTER TABLE runs ADD COLUMN gate_rules TEXT;
ALTER TABLE dispatches ADD COLUMN retry_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dispatches ADD COLUMN spawn_depth INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dispatches ADD COLUMN parent_dispatch_id TEXT NOT NULL DEFAULT '';
""",
    26: """
ALTER TABLE phase_events ADD COLUMN envelope_json TEXT;
CREATE TABLE session_attributions(id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL,
  project_dir TEXT NOT NULL, bead_id TEXT, run_id TEXT, phase TEXT, created_at INTEGER NOT NULL DEFAULT (unixepoch()));
CREATE INDEX session_attributions_by_session ON session_attributions(session_id, project_dir);
""",
    39: """
CREATE TABLE goals(id TEXT NOT NULL PRIMARY KEY, run_id TEXT REFERENCES runs(id), statement TEXT NOT NULL,
  created_at INTEGER NOT NULL DEFAULT (unixepoch()));
""",
}
_CHARACTERS = string.ascii_lowercase + string.digits


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection as `ic` opens it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=5)
    connection.execute("PRAGMA journal_mode=WAL").fetchone()
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def new_id() -> str:
    return "".join(secrets.choice(_CHARACTERS) for _ in range(8))


class IcProject:
    """A project directory with `.clavain/intercore.db`, which is written by one writer at a time.

    Times (`at`) are whole seconds since the epoch; the default is the current time.
    """

    def __init__(self, root: Path, version: int = NEWEST) -> None:
        self.root = root
        self.directory = root / ".clavain"
        self.database = self.directory / "intercore.db"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.database.touch(mode=0o600)
        self.migrate(version)

    def migrate(self, version: int) -> None:
        """Add what newer versions have, as `ic init` does."""
        with closing(connect(self.database)) as connection:
            ((present,),) = connection.execute("PRAGMA user_version")
            steps = "".join(step for number, step in _STEPS.items() if present < number <= version)
            connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {version}; COMMIT;")

    def write(self, *statements: tuple[str, Iterable[object]]) -> None:
        """Open the database, execute the statements in one transaction, and close it."""
        with closing(connect(self.database)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for sql, parameters in statements:
                connection.execute(sql, tuple(parameters))
            connection.execute("COMMIT")

    def execute(self, sql: str, *parameters: object) -> None:
        """Execute one statement in its own transaction."""
        self.write((sql, parameters))

    def query(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.database, timeout=5)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(sql, parameters)]

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return a table's rows, in the order of their ids."""
        return self.query(f"SELECT * FROM {table} ORDER BY rowid")

    def row(self, run: str) -> dict[str, Any]:
        (row,) = self.query("SELECT * FROM runs WHERE id = ?", run)
        return row

    def run_create(  # noqa: PLR0913  the columns of a run
        self,
        goal: str = "a goal",
        *,
        run: str | None = None,
        project_dir: str | None = None,
        scope: str | None = None,
        complexity: int = 3,
        budget: int | None = None,
        warn_pct: int = 80,
        enforce: bool = False,
        phases: Iterable[str] | None = None,
        parent: str | None = None,
        at: int | None = None,
        **columns: object,
    ) -> str:
        """Create a run and return its id. `columns` are further columns, or odd values for the named ones."""
        run = run or new_id()
        at = _time(at)
        chain = None if phases is None else list(phases)
        values: dict[str, object] = {
            "id": run,
            "project_dir": str(self.root) if project_dir is None else project_dir,
            "goal": goal,
            "phase": DEFAULT_CHAIN[0] if chain is None else chain[0],
            "complexity": complexity,
            "created_at": at,
            "updated_at": at,
            "scope_id": scope,
            "phases": None if chain is None else json.dumps(chain),
            "token_budget": budget,
            "budget_warn_pct": warn_pct,
        }
        if enforce:
            values["budget_enforce"] = 1
        if parent is not None:
            values["parent_run_id"] = parent
        self.write(_insert("runs", values | columns))
        return run

    def advance(self, run: str, *, at: int | None = None, kind: str = "advance") -> str:
        """Move a run to its next phase, which completes it if that is the last one. Return the new phase."""
        row = self.row(run)
        chain = json.loads(row["phases"]) if row["phases"] else DEFAULT_CHAIN
        following: str = chain[list(chain).index(row["phase"]) + 1]
        self.move(run, following, kind=kind, at=at, ends=following == chain[-1])
        return following

    def move(self, run: str, to: str, *, kind: str, at: int | None = None, ends: bool = False) -> None:
        """Move a run to a phase. One that was completed is active again unless the move `ends` it."""
        at = _time(at)
        status, ended = ("completed", at) if ends else ("active", None)
        event = {
            "run_id": run,
            "from_phase": self.row(run)["phase"],
            "to_phase": to,
            "event_type": kind,
            "created_at": at,
        }
        self.write(
            _insert("phase_events", event),
            (
                "UPDATE runs SET phase = ?, status = ?, completed_at = ?, updated_at = ? WHERE id = ?",
                (to, status, ended, at, run),
            ),
        )

    def rollback(self, run: str, to: str, *, at: int | None = None) -> None:
        """Move a run back to an earlier phase, which revives a completed one."""
        self.move(run, to, kind="rollback", at=at)

    def event(self, run: str, kind: str, *, at: int | None = None, **columns: object) -> None:
        """Insert an event that does not move the run, such as `skip`, `block`, `pause` or `budget.warning`."""
        phase = self.row(run)["phase"]
        values = {"run_id": run, "from_phase": phase, "to_phase": phase, "event_type": kind, "created_at": _time(at)}
        self.write(_insert("phase_events", values | columns))

    def complete(self, run: str, *, at: int | None = None) -> None:
        self._end(run, "completed", at)

    def cancel(self, run: str, *, at: int | None = None) -> None:
        self._end(run, "cancelled", at)
        self.event(run, "cancel", at=at)

    def fail(self, run: str, *, at: int | None = None) -> None:
        self._end(run, "failed", at)

    def _end(self, run: str, status: str, at: int | None) -> None:
        at = _time(at)
        self.execute("UPDATE runs SET status = ?, completed_at = ?, updated_at = ? WHERE id = ?", status, at, at, run)

    def set(self, run: str, **columns: object) -> None:
        """Change columns of a run, for example `token_budget=…`, and add the event `set`."""
        self.update("runs", run, **columns)
        self.event(run, "set")

    def update(self, table: str, key: str, **columns: object) -> None:
        """Change columns of one row. The values may be odd."""
        places = ", ".join(f"{name} = ?" for name in columns)
        self.execute(f"UPDATE {table} SET {places} WHERE id = ?", *columns.values(), key)

    def claim(self, session: str | None, run: str, *, at: int | None = None, **columns: object) -> None:
        """Record that a session works for a run, as Clavain's sprints do."""
        values = {"id": new_id(), "run_id": run, "agent_type": "session", "name": session, "created_at": _time(at)}
        self.write(_insert("run_agents", values | columns))

    def attribute(
        self, session: str, *, run: str | None = None, bead: str | None = None, at: int | None = None
    ) -> None:
        """Record what a session works for, as Clavain's attribution for the whole machine does."""
        values = {
            "session_id": session,
            "project_dir": str(self.root),
            "run_id": run,
            "bead_id": bead,
            "created_at": _time(at),
        }
        self.write(_insert("session_attributions", values))

    def dispatch(
        self,
        run: str | None,
        input_tokens: object = 0,
        output_tokens: object = 0,
        cache_hits: object = None,
        *,
        dispatch: str | None = None,
        agent: str = "codex",
        status: str = "completed",
        at: int | None = None,
        **columns: object,
    ) -> str:
        """Insert a dispatch of a run and return its id."""
        dispatch = dispatch or new_id()
        at = _time(at)
        values = {
            "id": dispatch,
            "agent_type": agent,
            "status": status,
            "project_dir": str(self.root),
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "cache_hits": cache_hits,
            "scope_id": run,
            "created_at": at,
            "completed_at": at if status == "completed" else None,
        }
        self.write(_insert("dispatches", values | columns))
        return dispatch

    def delete(self, table: str, key: str) -> None:
        """Delete one row, as pruning does."""
        self.execute(f"DELETE FROM {table} WHERE id = ?", key)

    def state(self, key: str, run: str) -> Any:
        """Return the payload of a state row, None if there is no such row."""
        rows = self.query("SELECT payload FROM state WHERE key = ? AND scope_id = ?", key, run)
        return json.loads(rows[0]["payload"]) if rows else None

    def set_state(self, key: str, run: str, payload: object) -> None:
        self.execute(
            "INSERT OR REPLACE INTO state(key, scope_id, payload, updated_at) VALUES (?, ?, ?, ?)",
            key,
            run,
            json.dumps(payload),
            _time(None),
        )

    def set_budget_exceeded(self, run: str) -> None:
        """Record that the one refusal of `ic run budget` was given."""
        self.set_state("budget.exceeded", run, {"exceeded": True})

    def tokens(self, run: str) -> int:
        """Return what `ic run tokens` counts: the input and output of the run's dispatches."""
        sums = "SELECT ifnull(sum(input_tokens + output_tokens), 0) AS total FROM dispatches WHERE scope_id = ?"
        return int(self.query(sums, run)[0]["total"])

    def refuses(self, run: str) -> bool:
        """Return True if `ic run budget` refuses, which it does only once: it records that it did."""
        budget = self.row(run)["token_budget"]
        if not budget or self.tokens(run) < budget or self.state("budget.exceeded", run) is not None:
            return False
        self.set_budget_exceeded(run)
        return True


def _time(at: int | None) -> int:
    return int(time.time()) if at is None else at


def _insert(table: str, values: Mapping[str, object]) -> tuple[str, Iterable[object]]:
    names, places = ", ".join(values), ", ".join("?" * len(values))
    return f"INSERT INTO {table}({names}) VALUES ({places})", values.values()
