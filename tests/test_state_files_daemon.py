"""State files, written by a real daemon."""

import fcntl
import json
import os
import signal
from pathlib import Path

from fluxbudgetd.wire import messages
from harness.daemon import Daemon, Home, Wire, started, wait_for
from harness.events import (
    channels,
    read_state_file,
)
from harness.interstat import Interstat


def state_files(home: Home) -> set[str]:
    """Return the files and links in the state directory, without the lock."""
    root = home.socket.parent / "state"
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()} - {
        "alive"
    }


def is_held(home: Home) -> bool:
    """True if a daemon holds the lock by which readers of state files know that it lives."""
    try:
        fd = os.open(home.socket.parent / "state" / "alive", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def test_state_files_follow_their_runs(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    wait_for(lambda: is_held(home), "the lock")
    run = started(home, id="r1", session="s1", scope="b1", token_budget=1000)
    wait_for(lambda: state_files(home) == {"runs/r1", "sessions/s1", "scopes/b1"}, "the run's files")

    def shows(**expected: str) -> None:
        def does() -> bool:
            found = read_state_file(home, "runs", "r1") or {}
            return {name: found.get(name) for name in expected} == expected

        wait_for(does, f"the state file to say {expected}")

    shows(run="r1", phase="brainstorm", state="ok", budget="1000", spent="0", remaining="1000", pct="0.0", reserved="0")
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    shows(state="warning", spent="810", remaining="190", pct="81.0", stale="0")
    shows(line="'brainstorm ██████▍░ 810/1k 81%'")
    assert (
        read_state_file(home, "sessions", "s1")
        == read_state_file(home, "scopes", "b1")
        == read_state_file(home, "runs", "r1")
    )
    home.ok("run", "attach", "--run", run, "--session", "s2")
    wait_for(lambda: "sessions/s2" in state_files(home), "the new session's link")
    home.ok("run", "detach", "--session", "s2")
    wait_for(lambda: "sessions/s2" not in state_files(home), "the link to go")
    home.ok("advance", "--run", run, "--from", "brainstorm")
    shows(phase="brainstorm-reviewed")
    home.ok("run", "set", "--run", run, "--budget", "500000")
    shows(budget="500000", state="ok", remaining="499190")
    given = {"session_id": "s1", "hook_event_name": "PreToolUse", "cwd": "/x", "tool_name": "Agent"}
    asked = messages.Hook(
        input=json.dumps({**given, "tool_input": {"subagent_type": "fd-quality"}}).encode(), wait_ms=30_000
    )
    assert home.ask(asked) == messages.HookAnswer()
    reserved = home.spend(run).reserved
    assert reserved > 0
    shows(reserved=str(reserved), remaining=str(499_190 - reserved))
    other = started(home, id="r2", session="o1", token_budget=7)
    home.ok("run", "attach", "--run", other, "--session", "s1")
    wait_for(lambda: (read_state_file(home, "sessions", "s1") or {}).get("run") == "r2", "the moved session's link")
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: state_files(home) == {"runs/r2", "sessions/o1", "sessions/s1"}, "the ended run's files to go")
    daemon.signal(signal.SIGTERM)
    assert daemon.process.wait(timeout=60) == 0
    assert state_files(home) == set()
    assert not (home.socket.parent / "state" / "alive").exists()


def test_state_files_after_a_kill_and_a_restart(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A kill leaves them without the lock. The next daemon removes outdated files and updates the others."""
    run = started(home, id="r1", session="s1", token_budget=1000)
    gone = started(home, id="r2", session="s2", scope="b2", token_budget=1000)
    everything = {"runs/r1", "sessions/s1", "runs/r2", "sessions/s2", "scopes/b2"}
    wait_for(lambda: state_files(home) == everything, "the files")
    daemon.kill()
    assert state_files(home) == everything
    assert not is_held(home)
    assert (home.socket.parent / "state" / "alive").exists()
    for name in ("runs/ghost", "sessions/ghost", ".fluxbudget-left"):
        (home.socket.parent / "state" / name).write_text("run=ghost\n")
    second = home.start()
    wait_for(lambda: is_held(home), "the lock")
    wait_for(lambda: state_files(home) == everything, "the same files, without the leftovers")
    home.ok("run", "cancel", "--run", gone)
    second.kill()
    interstat.insert("s1", input_tokens=810, output_tokens=0)
    home.start()

    def is_right() -> bool:
        return (
            state_files(home) == {"runs/r1", "sessions/s1"}
            and (read_state_file(home, "runs", run) or {})["spent"] == "810"
        )

    wait_for(is_right, "the current files")


def test_state_files_of_hostile_names_stay_inside(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Runs may have dots and colons in their ids; sessions and scopes may have any name."""
    names = {"_.": "s/../../1", "_..": "../../../evil", "0...": ".hidden", "a:b": "/etc/passwd", "x": "new\nline"}
    for name, foreign in names.items():
        started(home, id=name, session=foreign, scope=f"{foreign}/..", token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 15, "a file and two links for each")
    assert {path for path in state_files(home) if path.startswith("runs/")} == {
        "runs/_.", "runs/_..", "runs/0...", "runs/a:b", "runs/x",
    }  # fmt: skip
    state = home.socket.parent / "state"
    for path in (state / "sessions", state / "scopes"):
        for link in path.iterdir():
            found = read_state_file(home, path.name, link.name)
            assert found is not None
            assert found["run"] in names
            assert Path(os.path.realpath(link)).parent == state / "runs"
    inside = {entry.name for entry in state.iterdir()}
    assert inside == {"alive", "runs", "sessions", "scopes"}
    assert {entry.name for entry in home.socket.parent.iterdir()} == {
        "fluxbudgetd.sock",
        "fluxbudgetd.sock.lock",
        "hard",
        "state",
    }
    assert {entry.name for entry in (home.root / "run").iterdir()} == {"fluxbudget"}
    for name in names:
        home.ok("run", "finish", "--run", name)
    wait_for(lambda: state_files(home) == set(), "all of them to go")


def test_removal_of_state_files_is_retried(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """One run's file cannot be written when another run ends and a session leaves."""
    blocked = started(home, id="blocked", session="s1", token_budget=1000)
    ending = started(home, id="ending", session="s2", scope="b2", token_budget=1000)
    staying = started(home, id="staying", session="s3", token_budget=1000)
    home.ok("run", "attach", "--run", staying, "--session", "s4")
    wait_for(lambda: len(state_files(home)) == 8, "the files")
    path = home.socket.parent / "state" / "runs" / blocked
    path.unlink()
    path.mkdir()
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    home.ok("run", "finish", "--run", ending)
    home.ok("run", "detach", "--session", "s4")
    wait_for(lambda: "sessions/s4" not in state_files(home), "the session's link to go, by a retry")
    path.rmdir()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    assert state_files(home) == {"runs/blocked", "sessions/s1", "runs/staying", "sessions/s3"}


def test_state_files_written_during_a_failure_go_with_their_runs(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    """One run's file cannot be written while another run and a session come and go."""
    blocked = started(home, id="blocked", session="s1", token_budget=1000)
    staying = started(home, id="staying", session="s2", token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 4, "the files")
    path = home.socket.parent / "state" / "runs" / blocked
    path.unlink()
    path.mkdir()
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    wait_for(lambda: channels(home)["state files"].state == "failing", "the state files to fail")
    home.ok("run", "attach", "--run", staying, "--session", "s9")
    brief = started(home, id="brief", session="s8", scope="b8", token_budget=1000)
    wait_for(lambda: {"sessions/s9", "scopes/b8", "runs/brief"} <= state_files(home), "the files that can be written")
    home.ok("run", "detach", "--session", "s9")
    home.ok("run", "finish", "--run", brief)
    path.rmdir()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    expected = {"runs/blocked", "sessions/s1", "runs/staying", "sessions/s2"}
    wait_for(lambda: state_files(home) == expected, "the files of the ended run and session to go")


def test_state_directory_that_could_not_be_made_is_made_later(home: Home, interstat: Interstat) -> None:
    """It is made even if no run needs it."""
    home.socket.parent.mkdir(parents=True)
    in_the_way = home.socket.parent / "state"
    in_the_way.write_text("a file in the directory's place")
    home.start()
    assert channels(home)["state files"].state == "failing"
    in_the_way.unlink()
    wait_for(lambda: channels(home)["state files"].state == "ok", "the daemon to try again")
    assert is_held(home)


def test_ready_daemon_holds_the_lock(home: Home, interstat: Interstat) -> None:
    """A client that has seen it ready trusts the state files."""
    for _ in range(3):
        daemon = home.start()
        assert is_held(home)
        daemon.stop()
        assert not is_held(home)


def test_state_file_of_a_scope_moves_to_its_next_run(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The next run of the scope starts right after the first has ended."""
    scopes = [f"b{number}" for number in range(20)]
    for scope in scopes:
        started(home, id=f"old-{scope}", scope=scope, token_budget=1000)
    wait_for(lambda: len(state_files(home)) == 40, "the files")
    with Wire(home.socket) as wire:
        for scope in scopes:
            wire.ask(messages.RunFinish(run=f"old-{scope}", wait_ms=30_000))
            wire.ask(
                messages.RunStart(id=f"new-{scope}", scope=scope, project_dir="/p", token_budget=7, wait_ms=30_000)
            )
    expected = {scope: f"new-{scope}" for scope in scopes}

    def shown() -> dict[str, str]:
        return {scope: (read_state_file(home, "scopes", scope) or {}).get("run", "") for scope in scopes}

    wait_for(lambda: shown() == expected, "each scope's state file to be the new run's")
    wait_for(lambda: not any("/old" in name for name in state_files(home)), "the old runs' files to go")
