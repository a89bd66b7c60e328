"""A stand-in for intercore's `ic` in the demo: the few commands that its story needs, on a database like intercore's.

Like `ic`, it finds `.clavain/intercore.db` from the working directory, and each call opens the database, works and
closes it. It knows nothing of fluxbudget.
"""

import json
import sqlite3
import sys
import time
from pathlib import Path

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE runs(id TEXT NOT NULL PRIMARY KEY, project_dir TEXT NOT NULL, goal TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'active', phase TEXT NOT NULL, complexity INTEGER NOT NULL DEFAULT 3,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, completed_at INTEGER, scope_id TEXT, phases TEXT,
  token_budget INTEGER, budget_warn_pct INTEGER DEFAULT 80, budget_enforce INTEGER DEFAULT 0, parent_run_id TEXT);
CREATE TABLE phase_events(id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL, from_phase TEXT NOT NULL,
  to_phase TEXT NOT NULL, event_type TEXT NOT NULL, reason TEXT, created_at INTEGER NOT NULL);
CREATE TABLE dispatches(id TEXT NOT NULL PRIMARY KEY, agent_type TEXT NOT NULL DEFAULT 'codex',
  status TEXT NOT NULL DEFAULT 'spawned', project_dir TEXT NOT NULL, name TEXT, model TEXT,
  input_tokens INTEGER DEFAULT 0, output_tokens INTEGER DEFAULT 0, cache_hits INTEGER, scope_id TEXT,
  created_at INTEGER NOT NULL DEFAULT (unixepoch()), completed_at INTEGER, verdict_status TEXT);
CREATE INDEX dispatches_by_scope ON dispatches(scope_id);
CREATE TABLE run_agents(id TEXT NOT NULL PRIMARY KEY, run_id TEXT NOT NULL, agent_type TEXT NOT NULL, name TEXT,
  status TEXT NOT NULL DEFAULT 'active', created_at INTEGER NOT NULL);
CREATE TABLE session_attributions(id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL,
  project_dir TEXT NOT NULL, bead_id TEXT, run_id TEXT, phase TEXT, created_at INTEGER NOT NULL);
CREATE TABLE state(key TEXT NOT NULL, scope_id TEXT NOT NULL, payload TEXT NOT NULL,
  updated_at INTEGER NOT NULL DEFAULT (unixepoch()), expires_at INTEGER, PRIMARY KEY (key, scope_id));
PRAGMA user_version = 39;
"""
PHASES = (
    *("brainstorm", "brainstorm-reviewed", "strategized", "planned"),
    *("executing", "review", "polish", "reflect", "done"),
)
RUN = "k3x9m2qa"


def main(arguments: list[str]) -> int:
    """Carry out one command, as `ic` does."""
    words = [word for word in arguments if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in arguments if word.startswith("--"))
    if words == ["init"]:
        Path(".clavain").mkdir(mode=0o700)
    connection = sqlite3.connect(_database(), isolation_level=None, timeout=5)
    try:
        return _COMMANDS[" ".join(words[:2])](connection, words[2:], flags)
    finally:
        connection.close()


def _database() -> Path:
    here = Path.cwd()
    return next(place / ".clavain" / "intercore.db" for place in (here, *here.parents) if (place / ".clavain").is_dir())


def _init(connection: sqlite3.Connection, _words: list[str], _flags: dict[str, str]) -> int:
    connection.executescript(SCHEMA)
    return 0


def _create(connection: sqlite3.Connection, _words: list[str], flags: dict[str, str]) -> int:
    now = int(time.time())
    connection.execute(
        "INSERT INTO runs(id, project_dir, goal, phase, created_at, updated_at, scope_id, token_budget) "
        "VALUES (?,?,?,?,?,?,?,?)",
        (RUN, str(Path.cwd()), flags["goal"], PHASES[0], now, now, flags["scope-id"], int(flags["token-budget"])),
    )
    print(RUN)
    return 0


def _claim(connection: sqlite3.Connection, words: list[str], flags: dict[str, str]) -> int:
    """Record that a session works for a run: `ic run agent add RUN --type=session --name=SESSION`."""
    connection.execute(
        "INSERT INTO run_agents(id, run_id, agent_type, name, created_at) VALUES (?,?,?,?,?)",
        (f"agent{time.time_ns()}", words[1], flags["type"], flags["name"], int(time.time())),
    )
    return 0


def _advance(connection: sqlite3.Connection, words: list[str], flags: dict[str, str]) -> int:
    now = int(time.time())
    connection.execute("BEGIN IMMEDIATE")
    ((phase,),) = connection.execute("SELECT phase FROM runs WHERE id=?", words)
    following = PHASES[PHASES.index(phase) + 1]
    connection.execute("UPDATE runs SET phase=?, updated_at=? WHERE id=?", (following, now, *words))
    connection.execute(
        "INSERT INTO phase_events(run_id, from_phase, to_phase, event_type, reason, created_at) VALUES (?,?,?,?,?,?)",
        (*words, phase, following, "advance", flags.get("skip-reason"), now),
    )
    connection.execute("COMMIT")
    print(json.dumps({"advanced": True, "from_phase": phase, "to_phase": following, "event_type": "advance"}))
    return 0


def _tokens(connection: sqlite3.Connection, words: list[str], _flags: dict[str, str]) -> int:
    sums = "SELECT ifnull(sum(input_tokens), 0), ifnull(sum(output_tokens), 0) FROM dispatches WHERE scope_id=?"
    ((given, made),) = connection.execute(sums, words)
    print(f"input {given}, output {made}, total {given + made}")
    return 0


_COMMANDS = {
    "init": _init,
    "run create": _create,
    "run agent": _claim,
    "run advance": _advance,
    "run tokens": _tokens,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
