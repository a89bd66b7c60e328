"""Twenty ways around a hard limit, tried by real processes: what docs/enforcement.md says about each.

(`tests/e2e` tries those that need the real Claude Code.)
"""

import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import pytest

from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber
from harness.hooks import write_usage
from harness.interstat import Interstat
from harness.session_process import SessionProcess, command
from harness.suspend import suspend

DOCUMENT = Path(__file__).parents[1] / "docs" / "enforcement.md"
TESTS = Path(__file__).parent
RAISE = command("run", "set", "--run", "r1", "--budget", "50000")


@pytest.fixture
def claude(home: Home, interstat: Interstat, daemon: Daemon) -> Iterator[SessionProcess]:
    """Start a session that has used up the hard budget of its run."""
    started(home, id="r1", session="s1", token_budget=1000, enforcement="hard")
    write_usage(home, 1200)
    assert home.spent("r1") == 1200
    with SessionProcess(home, "s1") as process:
        process.hook("SessionStart", source="startup", transcript_path=str(transcript(home)))
        assert is_stopped(process)
        yield process


def transcript(home: Home) -> Path:
    (found,) = (home.root / "claude" / "projects").glob("*/s1.jsonl")
    return found


def is_stopped(claude: SessionProcess) -> bool:
    """Return True if the session's next prompt is blocked."""
    return claude.hook("UserPromptSubmit", prompt="go on").get("decision") == "block"


def budget(home: Home) -> int | None:
    return home.details("r1").run.token_budget


def kinds(home: Home) -> list[str]:
    with Subscriber(home, since=0) as stream:
        stream.read_to(stream.subscribed.last)
    return [event.kind for event in stream.events]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("run", "set", "--run", "r1", "--budget", "50000"), id="raise"),
        pytest.param(("run", "set", "--run", "r1", "--budget", "none"), id="remove"),
        pytest.param(("run", "set", "--run", "r1", "--enforcement", "soft"), id="soften"),
        pytest.param(("run", "detach", "--session", "s1"), id="detach"),
        pytest.param(("run", "start", "--id", "mine", "--session", "s1"), id="move"),
        pytest.param(("run", "finish", "--run", "r1"), id="finish"),
        pytest.param(("run", "cancel", "--run", "r1"), id="cancel"),
        pytest.param(("allow", "--run", "r1"), id="allow"),
    ],
)
def test_command_is_refused(home: Home, claude: SessionProcess, words: tuple[str, ...]) -> None:
    done = claude.bash(command(*words))
    assert done.returncode == 1, done
    assert is_stopped(claude)
    assert "run.loosened" not in kinds(home)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f"setsid --wait {RAISE}", id="setsid"),
        pytest.param(f"env -u CLAUDE_CODE_SESSION_ID {RAISE}", id="env -u"),
        pytest.param(f"script --quiet --return --command {quote(RAISE)} /dev/null", id="script"),
    ],
)
def test_wrapped_command_is_refused(home: Home, claude: SessionProcess, script: str) -> None:
    assert claude.bash(script).returncode == 1
    assert is_stopped(claude)


def test_orphan_raises_the_limit_and_is_reported(home: Home, claude: SessionProcess, daemon: Daemon) -> None:
    claude.bash(f"setsid --fork {RAISE}")
    wait_for(lambda: budget(home) == 50_000, "the budget to be raised")
    shown = claude.hook("UserPromptSubmit", prompt="go on")
    assert "budget raised from 1 000 to 50 000 billing tokens" in shown["systemMessage"]
    assert "budget raised" not in str(shown.get("hookSpecificOutput"))
    assert "run.loosened" in kinds(home)
    wait_for(lambda: '"limit loosened"' in daemon.log, "the log")


def test_decoy_run_frees_nothing(home: Home, claude: SessionProcess) -> None:
    """Another run for the directory, or below it, is not the session's."""
    below = home.project / "below"
    below.mkdir()
    for project in (home.project, below):
        done = claude.bash(command("run", "start", "--no-session", "--project", str(project)))
        assert done.returncode == 0, done
    assert is_stopped(claude)
    checked = claude.bash(f"cd below && {command('check')}")
    assert (checked.returncode, checked.stdout.split("|")[0]) == (1, "budget_exceeded")


def test_stopped_daemon_changes_nothing_later(home: Home, claude: SessionProcess, daemon: Daemon) -> None:
    """When a suspended daemon goes on, it refuses requests whose clients have ended."""
    wait_for(lambda: list((home.socket.parent / "hard").glob("*")), "the marker")
    suspend(daemon.process.pid)
    short = RAISE.replace("--timeout 60", "--timeout 1")
    assert claude.bash(f"{short}; setsid --fork {short}; sleep 2").returncode == 0
    assert is_stopped_without_answer(claude)
    daemon.signal(signal.SIGCONT)
    wait_for(lambda: daemon.log.count('"loosening refused"') == 2, "the late requests to be refused")
    assert daemon.log.count('"kind": "unknown"') == 2
    assert budget(home) == 1000
    assert is_stopped(claude)


def is_stopped_without_answer(claude: SessionProcess) -> bool:
    given = {"hook_event_name": "UserPromptSubmit", "session_id": "s1", "prompt": "go on"}
    done = claude.run("sh", "-c", f"{command('hook', '--timeout', '1')}; true", stdin=json.dumps(given))
    return bool(json.loads(done.stdout or "{}").get("decision") == "block")


def test_killed_daemon_frees_nothing(home: Home, claude: SessionProcess, daemon: Daemon) -> None:
    wait_for(lambda: list((home.socket.parent / "hard").glob("*")), "the marker")
    done = claude.bash(f"kill -KILL {daemon.process.pid}; {RAISE}")
    assert done.returncode == 69, done
    assert is_stopped_without_answer(claude)
    daemon.kill()
    home.start()
    assert is_stopped(claude)
    assert claude.bash(RAISE).returncode == 1


def test_changed_ledger_is_believed(home: Home, claude: SessionProcess, daemon: Daemon) -> None:
    """The session runs as the same user, so nothing keeps it from writing to the daemon's files."""
    daemon.kill()
    connection = sqlite3.connect(home.state / "ledger.db")
    (raw,) = connection.execute("SELECT run FROM runs WHERE id = 'r1'").fetchone()
    changed = json.dumps({**json.loads(raw), "token_budget": 50_000}).encode()
    connection.execute("UPDATE runs SET run = ? WHERE id = 'r1'", (changed,))
    connection.commit()
    connection.close()
    home.start()
    wait_for(lambda: not is_stopped(claude), "the session to go on")
    assert "run.loosened" not in kinds(home)


def test_wrong_socket_only_makes_the_check_fail(home: Home, claude: SessionProcess) -> None:
    """Claude Code starts hooks with its own environment, which a command cannot change."""
    done = claude.bash(f"export FLUXBUDGET_SOCKET=/nowhere; {command('check')} || exit 1")
    assert done.returncode == 1
    assert claude.bash(f"FLUXBUDGET_SOCKET=/nowhere {RAISE}").returncode == 69
    assert is_stopped(claude)


@pytest.mark.parametrize("how", ["truncated", "deleted", "symlinked", "replaced"])
def test_changed_transcript_keeps_what_was_measured(home: Home, claude: SessionProcess, how: str) -> None:
    file = transcript(home)
    if how == "truncated":
        file.write_bytes(b"")
    else:
        file.unlink()
    if how == "symlinked":
        file.symlink_to("/dev/null")
    elif how == "replaced":
        file.write_text('{"type":"user"}\n')
    assert is_stopped(claude)
    assert home.spend("r1").spent == 1200
    doctor = home.ctl("doctor", "--json")
    assert doctor.returncode == 1
    assert str(file) in doctor.stdout


def test_forged_end_of_the_session_frees_nothing(home: Home, claude: SessionProcess) -> None:
    claude.hook("SessionEnd", reason="other")
    assert is_stopped(claude)
    assert claude.bash(RAISE).returncode == 1


def test_forged_start_moves_no_session(home: Home, claude: SessionProcess) -> None:
    home.ok("run", "start", "--id", "decoy", "--project", str(home.root), "--no-session")
    given = {"hook_event_name": "SessionStart", "session_id": "s1", "source": "startup", "cwd": str(home.root)}
    for hook in (f"FLUXBUDGET_RUN=decoy {command('hook', '--timeout', '60')}", command("hook", "--run", "decoy")):
        claude.run("sh", "-c", f"{hook}; true", stdin=json.dumps(given))
    assert is_stopped(claude)


@pytest.mark.parametrize("has_decoy", [False, True])
def test_nested_session_belongs_to_the_run_unless_it_finds_another(
    home: Home, claude: SessionProcess, has_decoy: bool
) -> None:
    """A session that a session starts elsewhere has its hard run, but another run of that directory comes first."""
    elsewhere = home.root / "elsewhere"
    elsewhere.mkdir()
    if has_decoy:
        home.ok("run", "start", "--id", "decoy", "--project", str(elsewhere), "--no-session")
    with SessionProcess(home, "nested") as nested:
        given = {
            "hook_event_name": "UserPromptSubmit",
            "session_id": "nested",
            "prompt": "go on",
            "cwd": str(elsewhere),
        }
        hook = f"cd '{elsewhere}' && env -u CLAUDE_CODE_SESSION_ID {command('hook', '--timeout', '60')}; true"
        done = claude.run(*nested.argv, stdin=nested.line("sh", "-c", hook, stdin=json.dumps(given)))
    assert ("block" in done.stdout) != has_decoy, done


def test_nested_session_with_another_socket_passes(home: Home, claude: SessionProcess) -> None:
    """A session chooses the environment of a program that it starts, and so where that program's hooks look."""
    given = {"hook_event_name": "UserPromptSubmit", "session_id": "nested", "prompt": "go on", "cwd": str(home.project)}
    with SessionProcess(home, "nested") as nested:
        hook = f"env -u FLUXBUDGET_RUN FLUXBUDGET_SOCKET=/nowhere/s {command('hook', '--timeout', '60')}"
        done = claude.run(*nested.argv, stdin=nested.line("sh", "-c", hook, stdin=json.dumps(given)))
    assert "block" not in done.stdout, done
    assert is_stopped(claude)


def test_every_row_of_the_document_names_a_test() -> None:
    """The table says for each dodge which test shows it."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 20
    known = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}
    assert named - known == set()
