"""Whether a process is inside a session is decided by its ancestors, whatever its environment says."""

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from shlex import quote
from typing import Any

import pytest

from fluxbudgetd import processes
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import Subscriber
from harness.session_process import SessionProcess, command


@pytest.fixture
def run(home: Home, daemon: Daemon) -> str:
    """Start a hard run."""
    return started(home, id="r1", enforcement="hard", token_budget=1000)


@pytest.fixture
def claude(home: Home, run: str) -> Iterator[SessionProcess]:
    """Start a session's process that has called its first hook."""
    with SessionProcess(home, "s1") as process:
        process.hook("SessionStart", source="startup")
        yield process


def budget(home: Home) -> int | None:
    return home.details("r1").run.token_budget


RAISE = command("run", "set", "--run", "r1", "--budget", "5000")


def test_process_is_read_whatever_its_name_is(home: Home) -> None:
    own = processes.read(os.getpid())
    assert own is not None
    assert (own.pid, own.parent) == (os.getpid(), os.getppid())
    found = processes.ancestry(os.getpid())
    assert [each.pid for each in found.processes[:2]] == [os.getpid(), os.getppid()]
    assert found.is_complete
    odd = home.root / "a) R 1 (b"
    odd.symlink_to("/bin/cat")
    pipe = os.pipe()
    pid = os.posix_spawn(odd, [str(odd)], {}, file_actions=[(os.POSIX_SPAWN_DUP2, pipe[0], 0)])
    try:
        wait_for(lambda: (each := processes.read(pid)) and each.comm == odd.name, "the program to start")
        each = processes.read(pid)
        assert each is not None
        assert each.parent == os.getpid()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pipe[0])
        os.close(pipe[1])
    assert processes.read(pid) is None
    assert processes.ancestry(pid) == processes.Ancestry((), is_complete=False)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(RAISE, id="plain"),
        pytest.param(f"env -u CLAUDE_CODE_SESSION_ID -u FLUXBUDGET_RUN {RAISE}", id="env -u"),
        pytest.param(f"env -i PATH=$PATH FLUXBUDGET_SOCKET=$FLUXBUDGET_SOCKET {RAISE}", id="env -i"),
        pytest.param(f"setsid --wait {RAISE}", id="setsid"),
        pytest.param(f"timeout 60 sh -c {quote(f'bash -c {quote(RAISE)} || exit 1')}", id="nested shells"),
        pytest.param(f"script --quiet --return --command {quote(RAISE)} /dev/null", id="script"),
        pytest.param(f"nohup {RAISE} & wait $!", id="in the background"),
    ],
)
def test_descendant_of_a_session_is_inside(home: Home, claude: SessionProcess, script: str) -> None:
    done = claude.bash(script)
    assert done.returncode == 1, done
    assert "run r1 is hard" in done.stdout + done.stderr
    assert "run it in your own terminal" in done.stdout + done.stderr
    assert budget(home) == 1000


def events(home: Home, kind: str = "run.loosened") -> list[dict[str, Any]]:
    """Return the events of a kind so far, each with its cause."""
    with Subscriber(home, since=0) as stream:
        stream.read_to(stream.subscribed.last)
    return [
        {"data": each.data, "by": each.by and each.by.kind, "comm": each.by and each.by.comm}
        for each in stream.events
        if each.kind == kind
    ]


def test_process_that_has_left_its_ancestors_passes_and_is_reported(home: Home, claude: SessionProcess) -> None:
    """Only ancestors count, so a process that init has adopted is not known to be inside."""
    assert claude.bash(f"setsid --fork {RAISE}").returncode == 0
    wait_for(lambda: budget(home) == 5000, "the budget to be raised")
    (loosened,) = events(home)
    assert loosened["data"] == {"action": "raise", "enforcement": "hard", "from": 1000, "to": 5000}
    assert loosened["by"] == "service"


def test_process_outside_may_raise_a_hard_budget(home: Home, claude: SessionProcess) -> None:
    home.ok("run", "set", "--run", "r1", "--budget", "5000")
    (loosened,) = events(home)
    assert loosened["by"] in ("service", "terminal")
    assert loosened["comm"].startswith("python")


def test_terminal_is_seen(home: Home, claude: SessionProcess) -> None:
    """A process with a terminal, outside any session, is a person's."""
    argv = ["script", "--quiet", "--return", "--command", RAISE, "/dev/null"]
    pid = os.posix_spawnp(argv[0], argv, home.environ, setsid=True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [each["by"] for each in events(home)] == ["terminal"]


@pytest.mark.parametrize("restart", [Daemon.kill, Daemon.stop])
def test_session_stays_known_when_the_daemon_restarts(
    home: Home, claude: SessionProcess, daemon: Daemon, restart: Callable[[Daemon], None]
) -> None:
    """A killed daemon's successor knows the session before its next hook."""
    wait_for(lambda: stored(home), "the session's process to be in the ledger")
    restart(daemon)
    home.start()
    assert claude.bash(RAISE).returncode == 1
    assert budget(home) == 1000


def test_session_that_is_resumed_without_a_start_shows_its_process_with_a_prompt(
    home: Home, claude: SessionProcess
) -> None:
    claude.end()
    with SessionProcess(home, "s1") as resumed:
        resumed.hook("UserPromptSubmit", prompt="go on")
        assert resumed.bash(RAISE).returncode == 1
    assert budget(home) == 1000


def stored(home: Home) -> list[tuple[int, int, str]]:
    connection = sqlite3.connect(home.state / "ledger.db")
    try:
        return connection.execute("SELECT pid, started, session FROM session_processes").fetchall()
    finally:
        connection.close()


def test_reused_process_id_is_another_process(home: Home, claude: SessionProcess, daemon: Daemon) -> None:
    """A process with the id of a session's process, but another start time, is not that session."""
    wait_for(lambda: stored(home), "the session's process to be in the ledger")
    daemon.stop()
    connection = sqlite3.connect(home.state / "ledger.db")
    connection.execute("UPDATE session_processes SET started = started - 1")
    connection.commit()
    connection.close()
    home.start()
    assert claude.bash(RAISE).returncode == 0
    assert budget(home) == 5000
    wait_for(lambda: not stored(home), "the ended process to be forgotten")


def test_processes_of_ended_sessions_are_forgotten(home: Home, claude: SessionProcess) -> None:
    with SessionProcess(home, "s2") as other:
        other.hook("UserPromptSubmit", prompt="go on")
        wait_for(lambda: {row[2] for row in stored(home)} == {"s1", "s2"}, "both processes to be in the ledger")
    with SessionProcess(home, "s3") as third:
        third.hook("UserPromptSubmit", prompt="go on")
        wait_for(lambda: {row[2] for row in stored(home)} == {"s1", "s3"}, "the ended process to be forgotten")


def test_forged_hook_does_not_free_a_session(home: Home, claude: SessionProcess) -> None:
    """After a forged end of the session, or another session's start, the process is still known."""
    home.ok("run", "start", "--id", "soft", "--project", str(home.root), "--no-session")
    claude.hook("SessionEnd", reason="other")
    forged = {"hook_event_name": "SessionStart", "session_id": "decoy", "source": "startup", "cwd": str(home.root)}
    hook = f"env -u CLAUDE_CODE_SESSION_ID {command('hook', '--timeout', '60')}; true"
    assert "run soft" in claude.run("sh", "-c", hook, stdin=json.dumps(forged)).stdout
    assert claude.bash(RAISE).returncode == 1
    assert budget(home) == 1000


def test_adopter_of_a_hook_is_not_a_session(home: Home, claude: SessionProcess) -> None:
    """A hook that outlives its session is adopted by init, and so is everything else of the user."""
    given = '{"hook_event_name": "SessionStart", "session_id": "orphan", "source": "startup", "cwd": "/"}'
    done = claude.bash(f"setsid --fork sh -c 'echo \"$0\" | {command('hook', '--timeout', '60')}' '{given}'")
    assert done.returncode == 0
    # Its answer is lost. The next hook of the same session shows that the daemon has handled it.
    with SessionProcess(home, "s2") as other:
        other.hook("SessionStart", source="startup")
        wait_for(lambda: {row[2] for row in stored(home)} >= {"s1", "s2"}, "the processes to be in the ledger")
    home.ok("run", "set", "--run", "r1", "--budget", "5000")
    assert all(row[0] != 1 for row in stored(home))


def test_nested_session_is_inside_the_outer_one(home: Home, claude: SessionProcess) -> None:
    """What a nested `claude -p` runs is inside both, even if the nested session has no run."""
    with SessionProcess(home, "nested") as nested:
        started_hook = {"hook_event_name": "SessionStart", "session_id": "nested", "source": "startup", "cwd": "/"}
        first = nested.line("sh", "-c", command("hook", "--timeout", "60"), stdin=json.dumps(started_hook))
        done = claude.run(*nested.argv, stdin=first + nested.line("bash", "-c", RAISE))
    assert "run r1 is hard" in done.stdout, done
    assert budget(home) == 1000
