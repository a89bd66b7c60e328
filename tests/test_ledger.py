"""The ledger keeps acknowledged changes, migrates old schemas, refuses newer ones and moves damaged files aside."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from fluxbudgetd.ledger import TranscriptChanges, open_ledger
from fluxbudgetd.ledger.schema import APPLICATION_ID, STEPS, VERSION, add_functions
from fluxbudgetd.model import TranscriptFile
from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, started
from harness.interstat import Interstat
from harness.privilege import OBEDIENT

FIXTURES = Path(__file__).parent / "fixtures"


def ledger(home: Home) -> Path:
    return home.state / "ledger.db"


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def failed_start(home: Home, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    daemon = home.start(*arguments, wait=False, prefix=prefix)
    code = daemon.process.wait(timeout=60)
    return code, daemon.log


def test_file_is_ours_private_and_in_wal_mode(home: Home, daemon: Daemon) -> None:
    assert rows(ledger(home), "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert rows(ledger(home), "PRAGMA user_version") == [(VERSION,)]
    assert rows(ledger(home), "PRAGMA journal_mode") == [("wal",)]
    for path in home.state.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert home.state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_ledger_of_every_version_opens(home: Home, version: int) -> None:
    """That version's daemon wrote the fixture: two runs, one finished, with usage, attachments and events.

    From version 8 on, there is a third run, which was adopted from an intercore database that no longer exists.
    """
    home.state.mkdir()
    shutil.copy(FIXTURES / f"ledger-v{version}.db", ledger(home))
    home.start()
    listed = {line["run"]["id"]: line for line in home.json("run", "list", "--all")["runs"]}
    assert set(listed) == {"fixture-active", "fixture-done", *(["fixture-adopted"] if version >= 8 else [])}
    assert listed["fixture-active"]["spend"]["spent"] == 1200
    assert listed["fixture-done"]["spend"]["spent"] == 30
    assert listed["fixture-active"]["run"]["goal"] == "kept as a fixture"
    assert home.ok("remaining", "--session", "s1") == str(100_000 - 1200)
    if version >= 2:
        assert listed["fixture-active"]["run"]["phase"] == "planned"
        (left, *_) = home.json("run", "show", "--run", "fixture-active")["by_phase"]
        assert (left["name"], left["state"], left["input"], left["output"]) == ("brainstorm", "completed", 1000, 100)
        ((triage,),) = rows(ledger(home), "SELECT id FROM triages")
        assert home.json("report", "--triage", str(triage))["pending"] == ["fd-safety", "fd-x"]
        assert rows(ledger(home), "SELECT count(*) FROM events WHERE kind = 'budget.warning'") == [(1,)]
    if version >= 3:
        # The transcript has been deleted, but still counts.
        (source,) = home.json("run", "show", "--run", "fixture-done")["sources"]
        assert (source["session"], source["counts"], source["transcripts_total"]) == ("s2", "transcripts", 30)
    if version >= 4:
        # s1 has received the warning, s9 has not. The reservations of that time have expired.
        hooks = {
            session: json.dumps({"session_id": session, "hook_event_name": "UserPromptSubmit"})
            for session in ("s1", "s9")
        }
        shown = {session: home.ctl("hook", "--timeout", "60", stdin=given) for session, given in hooks.items()}
        assert (shown["s1"].stdout, "1 % of the budget spent" in shown["s9"].stdout) == ("", True)
        assert listed["fixture-active"]["spend"]["reserved"] == 0
        assert rows(FIXTURES / "ledger-v4.db", "SELECT agent, tokens FROM reservations") == [("fd-x", 40_000)]
        assert rows(ledger(home), "SELECT * FROM reservations") == []
    if version >= 7:
        sql = "SELECT session, instance, agent, total, source FROM samples ORDER BY 1"
        expected = [("s1", "row-1", "fd-quality", 1100, "interstat"), ("s2", "agent-a1", "fd-x", 7, "transcripts")]
        assert rows(FIXTURES / f"ledger-v{version}.db", sql) == rows(ledger(home), sql) == expected
        assert set(home.json("estimates")["history"]) == {"fd-quality", "fd-x"}
    if version >= 8:
        adopted = home.json("run", "show", "--run", "fixture-adopted")
        assert (adopted["run"]["phase"], adopted["run"]["scope"]) == ("brainstorm-reviewed", "bead-3")
        assert [(line["name"], line["billing"]) for line in adopted["by_session"]] == [("intercore", 550), ("s3", 40)]
        assert [(each["session"], each["claimed"]) for each in adopted["attachments"]] == [("s3", True)]
        (database,) = home.json("status")["databases"]
        assert (database["state"], database["runs"]) == ("absent", ["fixture-adopted"])
    assert rows(ledger(home), "PRAGMA user_version") == [(VERSION,)]


def test_schema_steps_are_never_edited() -> None:
    """The fixture of each version has exactly the tables of the steps up to it."""
    for version in range(1, VERSION + 1):
        fresh = sqlite3.connect(":memory:")
        add_functions(fresh)
        for step in STEPS[:version]:
            fresh.executescript(step)
        expected = fresh.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        fresh.close()
        found = rows(FIXTURES / f"ledger-v{version}.db", "SELECT name, sql FROM sqlite_master ORDER BY name")
        assert found == expected


def test_newer_schema_is_refused_and_left_alone(home: Home) -> None:
    home.start().stop()
    connection = sqlite3.connect(ledger(home))
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.commit()
    connection.close()
    before = ledger(home).read_bytes()
    code, log = failed_start(home)
    assert code == 65
    assert f"has schema {VERSION + 1}; this fluxbudgetd knows schemas up to {VERSION}" in log
    assert "hint: " in log
    assert ledger(home).read_bytes() == before
    assert not home.socket.exists()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a ledger at all " * 500)


def damaged_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * (path.stat().st_size - 4096))


def another_database(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE of_another_program(a)")
    connection.commit()
    connection.close()


def flipped_byte(path: Path) -> None:
    """Change a byte in a run's text. SQLite does not notice that."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE runs SET run = CAST(replace(run, 'brainstorm', CAST(x'ff' AS TEXT)) AS BLOB)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("damage", [garbage, damaged_pages, another_database, flipped_byte])
def test_damaged_ledger_is_moved_aside(home: Home, damage: Callable[[Path], None]) -> None:
    """Nothing is overwritten. The daemon starts with a new ledger; its log and `doctor` say so."""
    Interstat(home.interstat).close()
    first = home.start()
    started(home, id="r1")
    first.stop()
    damage(ledger(home))
    damaged = ledger(home).read_bytes()
    second = home.start()
    (moved,) = [path for path in home.state.glob("ledger.db.damaged-*") if path.suffix not in (".db-wal", ".db-shm")]
    assert moved.read_bytes() == damaged
    assert "damaged ledger moved aside" in second.log
    doctor = home.ctl("doctor")
    assert (doctor.returncode, str(moved) in doctor.stdout) == (1, True), doctor
    assert started(home, id="r2") == "r2"
    second.stop()
    third = home.start()
    assert "damaged ledger" not in third.log
    assert [line["run"]["id"] for line in home.json("run", "list")["runs"]] == ["r2"]


def test_acknowledged_changes_survive_kill(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Every field of every change is there after kill -9."""
    fields: dict[str, Any] = {
        "scope": "b1", "goal": "a goal", "complexity": 4, "token_budget": 1234, "warn_pct": 60,
        "enforcement": "hard", "cost_basis": "total", "phases": ("a", "b"), "session": "s1",
    }  # fmt: skip
    run = started(home, **fields)
    started(home, id="r2", token_budget="none")
    home.ok("run", "set", "--run", run, "--budget", "4321", "--warn-pct", "70", "--enforcement", "soft")
    home.ok("run", "attach", "--run", "r2", "--session", "s2")
    home.ok("run", "finish", "--run", "r2")
    before = home.json("run", "show", "--run", run), home.json("run", "show", "--run", "r2")
    daemon.kill()
    home.start()
    assert (home.json("run", "show", "--run", run), home.json("run", "show", "--run", "r2")) == before
    assert before[0]["run"]["token_budget"] == 4321
    assert before[1]["run"]["status"] == "done"
    kinds = [kind for (kind,) in rows(ledger(home), "SELECT kind FROM events ORDER BY seq")]
    loosened = ["run.loosened", "run.loosened"]  # the budget, and the enforcement
    assert kinds == ["run.started", "run.started", "run.changed", *loosened, "run.changed", "run.finished"]


def test_ledger_that_cannot_be_written_is_reported_and_answers_continue(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    run = started(home, session="s1")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert home.spend(run).spent == 5
    ledger(home).rename(home.state / "elsewhere.db")
    result = home.ctl("run", "set", "--run", run, "--budget", "10")
    assert (result.returncode, result.stdout) == (70, "")
    assert "removed or replaced" in result.stderr
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert home.spend(run).spent == 10
    assert home.spend(run).budget == 250_000
    assert "removed or replaced" in home.ctl("doctor").stdout
    (home.state / "elsewhere.db").rename(ledger(home))
    home.ok("run", "set", "--run", run, "--budget", "10")


def test_full_disk(home: Home, interstat: Interstat) -> None:
    """Changes are refused, none is half done, and answers stay right."""
    run_as = ("prlimit", "--fsize=300000", *OBEDIENT)
    home.start(prefix=run_as)
    run = started(home, session="s1")
    refused = None
    for number in range(2000):
        answer = home.ask(messages.RunStart(project_dir="/p", goal="g" * 4000, id=f"r{number}"))
        if isinstance(answer, messages.ErrorAnswer):
            refused = number
            assert answer.error.code == "ledger", answer
            break
    assert refused is not None
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    assert home.spend(run).spent == 5
    listed = home.ask(messages.RunList())
    assert isinstance(listed, messages.RunListAnswer)
    assert len(listed.runs) == refused + 1


def test_state_directory_that_cannot_be_created(home: Home) -> None:
    closed = home.root / "closed"
    closed.mkdir(mode=0o555)
    code, log = failed_start(home, "--state-dir", str(closed / "new" / "state"), prefix=OBEDIENT)
    assert code == 1
    assert "cannot be created" in log
    assert "Traceback" not in log


def test_two_daemons_never_share_a_state_directory(home: Home, daemon: Daemon) -> None:
    code, log = failed_start(home, "--socket", str(home.root / "other" / "s.sock"))
    assert code == 1
    assert f"fluxbudgetd pid {daemon.process.pid}" in log


def test_fixture_can_be_made_again(tmp_path: Path) -> None:
    """`tests/fixtures/make_ledger.py` makes the fixture of the current version."""
    target = tmp_path / "ledger.db"
    path = os.pathsep.join(filter(None, (str(FIXTURES.parent), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        [sys.executable, FIXTURES / "make_ledger.py", target], check=True, env={**os.environ, "PYTHONPATH": path}
    )
    for sql in (
        "SELECT session, key, input, output FROM usage ORDER BY 1, 2",
        "SELECT session, instance, agent, total FROM samples ORDER BY 1, 2",
    ):
        assert rows(target, sql) == rows(FIXTURES / f"ledger-v{VERSION}.db", sql)


def test_large_inode_and_device_numbers_are_kept(tmp_path: Path) -> None:
    """Some file systems use numbers above the range of SQLite's integers."""

    async def body() -> None:
        ledger, _ = await open_ledger(str(tmp_path))
        file = TranscriptFile(1, "/p", 2**64 - 1, 2**63, 5, b"mark", "main-session")
        await ledger.transcripts.save(TranscriptChanges(files=[("s", file)]))
        assert await ledger.transcripts.files("s") == (file,)
        await ledger.close()

    anyio.run(body)
