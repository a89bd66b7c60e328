"""A hard limit holds without the daemon: the marker, the state files that stay, and what both clients make of them."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fluxbudgetctl.service import leftovers
from fluxbudgetd.wire.stops import LAUNCH_TOOLS
from harness.daemon import CTL, DAEMON, Daemon, Home, killed, started, wait_for
from harness.events import read_state_file
from harness.hooks import SILENT, Claude, HookOutput, launch_input, parse_output, write_usage
from harness.interstat import Interstat
from harness.native import both_clients
from harness.suspend import suspend

BUDGET = 1000
#: What only the person may read: the ways to lift a limit.
WAYS = ("fluxbudgetctl", "allow", "run set", "FLUXBUDGET", "--budget")


def markers(home: Home) -> set[str]:
    """Return the names of the markers."""
    directory = home.socket.parent / "hard"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def exhausted(home: Home, run: str = "r1", session: str = "s1", **fields: Any) -> str:
    """Start a run with a hard limit and use it up; wait for the marker."""
    started(home, id=run, session=session, token_budget=BUDGET, enforcement="hard", **fields)
    write_usage(home, BUDGET, session, f"m-{session}")
    home.spend(run)
    wait_for(lambda: run in markers(home), "the marker")
    return run


@contextmanager
def without_daemon(daemon: Daemon, how: str) -> Iterator[None]:
    """Stop the daemon in this way."""
    if how == "SIGSTOP":
        suspend(daemon.process.pid)
        try:
            yield
        finally:
            daemon.signal(signal.SIGCONT)
    elif how == "SIGKILL":
        daemon.kill()
        yield
    else:
        assert daemon.stop() == 0
        yield


def call(claude: Claude, event: str, **fields: Any) -> HookOutput:
    """Run a hook as Claude Code does, with its own time limit."""
    raw = json.dumps(claude.hook_input(event, **fields)).encode()
    return parse(claude, event, raw)


def parse(claude: Claude, event: str, raw: bytes, **environ: str) -> HookOutput:
    return parse_output(event, claude.run_raw(raw, environ=environ, seconds="0.3"))


def is_stop(output: HookOutput, run: str = "r1") -> bool:
    """True if the session is stopped, and only the person reads how to go on."""
    for_model = f"{output.context} {output.reason} {output.stop}"
    assert f"the budget of run {run} is exhausted (1 000 of 1 000 billing tokens spent)" in for_model
    assert not any(way in for_model for way in WAYS), for_model
    assert "the daemon gave no answer" in output.message
    assert f"fluxbudgetctl allow --run {run}" in output.message
    return True


# --- what the clients answer


@both_clients
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "SIGSTOP"])
def test_exhausted_hard_limit_holds_without_the_daemon(
    home: Home, interstat: Interstat, daemon: Daemon, how: str
) -> None:
    """It stops prompts, the turn and all launches, but not other sessions, and nothing that would lose a result."""
    exhausted(home)
    started(home, id="r2", session="s2", token_budget=BUDGET, enforcement="hard")
    claude, other, stranger = (Claude(home, session) for session in ("s1", "s2", "s3"))
    with without_daemon(daemon, how):
        prompt = call(claude, "UserPromptSubmit", prompt="go on")
        assert is_stop(prompt)
        assert prompt.decision == "block"
        raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
        in_terminal = parse(claude, "UserPromptSubmit", raw, CLAUDE_CODE_ENTRYPOINT="cli")
        assert in_terminal.reason == f"{prompt.reason}; {prompt.message.removeprefix('fluxbudget: ')}"
        assert call(claude, "UserPromptSubmit", prompt="<task-notification> done") == SILENT
        turn = call(claude, "PostToolBatch", tool_calls=[])
        assert is_stop(turn)
        assert turn.stop
        assert call(claude, "PostToolBatch", tool_calls=[], agent_id="a1", agent_type="fd-x") == SILENT
        for tool in LAUNCH_TOOLS:
            denied = call(claude, "PreToolUse", tool_name=tool, tool_input={"agent_id": "x"})
            assert is_stop(denied)
            assert denied.decision == "deny"
        inside = call(claude, "PreToolUse", tool_name="Agent", tool_input=launch_input("x"), agent_id="a1")
        assert inside.decision == "deny"
        assert call(claude, "PreToolUse", tool_name="Bash", tool_input={}) == SILENT
        for event in ("SessionStart", "SubagentStart", "SubagentStop", "Stop", "SessionEnd", "Whatever", ""):
            assert call(claude, event) == SILENT, event
        for unaffected in (other, stranger):
            assert call(unaffected, "UserPromptSubmit", prompt="go on") == SILENT
            assert call(unaffected, "PreToolUse", tool_name="Agent", tool_input=launch_input("x")) == SILENT


@both_clients
def test_allowed_time_is_kept_without_the_daemon(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The session goes on until the time is over, and is stopped then, although no daemon has seen that."""
    run = exhausted(home)
    claude = Claude(home, "s1")
    home.ok("allow", "--run", run, "--minutes", "5")
    state = home.socket.parent / "state" / "runs" / run
    wait_for(lambda: "allowed_until=2" in state.read_text(), "the allowance in the state file")
    daemon.kill()
    assert call(claude, "UserPromptSubmit", prompt="go on") == SILENT
    # (As if five minutes had passed.)
    state.write_text(re.sub("allowed_until=.*", "allowed_until=2026-01-01T00:00:00.000000Z", state.read_text()))
    assert is_stop(call(claude, "UserPromptSubmit", prompt="go on"))


@both_clients
def test_answering_daemon_decides_alone(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The files are only for when there is no answer."""
    exhausted(home)
    (home.socket.parent / "hard" / "ghost").touch()
    other = Claude(home, "s2", cwd=home.root)
    assert other.run("UserPromptSubmit", prompt="go on") == SILENT


@both_clients
@pytest.mark.parametrize(("enforcement", "tokens"), [("soft", BUDGET), ("hard", BUDGET - 1)])
def test_without_a_marker_nothing_is_stopped(
    home: Home, interstat: Interstat, daemon: Daemon, enforcement: str, tokens: int
) -> None:
    started(home, id="r1", session="s1", token_budget=BUDGET, enforcement=enforcement)
    write_usage(home, tokens)
    home.spend("r1")
    wait_for(lambda: (read_state_file(home, "runs", "r1") or {}).get("spent") == str(tokens), "the state file")
    assert markers(home) == set()
    daemon.kill()
    assert call(Claude(home), "UserPromptSubmit", prompt="go on") == SILENT


@both_clients
def test_soft_run_goes_on_beside_a_stopped_one(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    exhausted(home)
    started(home, id="r2", session="s2", token_budget=BUDGET)
    write_usage(home, BUDGET, "s2", "m2")
    home.spend("r2")
    wait_for(lambda: (read_state_file(home, "runs", "r2") or {}).get("state") == "exceeded", "the state file")
    daemon.kill()
    assert call(Claude(home, "s2"), "UserPromptSubmit", prompt="go on") == SILENT
    assert is_stop(call(Claude(home), "UserPromptSubmit", prompt="go on"))


@both_clients
def test_new_session_is_stopped_if_the_environment_names_the_run(
    home: Home, interstat: Interstat, daemon: Daemon
) -> None:
    exhausted(home)
    assert daemon.stop() == 0
    claude = Claude(home, "new")
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    assert parse(claude, "UserPromptSubmit", raw) == SILENT
    assert is_stop(parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_RUN="r1"))


@both_clients
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_session_of_another_run_goes_on_whatever_run_the_environment_names(
    home: Home, interstat: Interstat, daemon: Daemon, how: str
) -> None:
    """This is as with the daemon: a session's own run takes precedence over that of the environment."""
    exhausted(home)
    started(home, id="r2", session="s2", token_budget=BUDGET, enforcement="hard")
    wait_for((home.socket.parent / "state" / "sessions" / "s2").exists, "the session's file")
    claude = Claude(home, "s2")
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    with without_daemon(daemon, how):
        assert parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_RUN="r1") == SILENT
        assert is_stop(call(Claude(home), "UserPromptSubmit", prompt="go on"))


@both_clients
def test_other_socket_does_not_open_the_gate(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """This holds for one without a daemon, and for that of a daemon that was started elsewhere and killed."""
    exhausted(home)
    claude = Claude(home)
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    assert is_stop(parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_SOCKET="/nowhere/sock"))
    assert is_stop(parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_SOCKET="/nowhere/../x"))


@contextmanager
def serving_until(home: Home, how: str) -> Iterator[None]:
    """Start a daemon at the home's socket, and end it in this way."""
    command = [*DAEMON, "--socket", str(home.socket)]
    with killed(subprocess.Popen(command, env=home.environ, stderr=subprocess.DEVNULL)) as process:
        wait_for(lambda: home.ctl("ping").returncode == 0, "the daemon")
        yield
        process.send_signal(signal.Signals[how])
        assert process.wait(timeout=60) == (-signal.SIGKILL if how == "SIGKILL" else 0)


@both_clients
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_daemon_that_was_started_elsewhere(home: Home, interstat: Interstat, how: str) -> None:
    """Only the lock file at the usual place says where its socket was. It says so as long as a run is stopped."""
    usual, home.socket = home.socket, home.root / "elsewhere" / "sock"
    usual.parent.parent.mkdir(mode=0o700)
    with serving_until(home, how):
        exhausted(home)
    claude = Claude(home)
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    assert is_stop(parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_SOCKET=""))
    with serving_until(home, "SIGTERM"):
        home.ok("run", "finish", "--run", "r1")
        wait_for(lambda: markers(home) == set(), "the marker to go")
    assert usual.with_name(f"{usual.name}.lock").read_text() == ""


@both_clients
@pytest.mark.parametrize("tool_input", [{"prompt": "x" * 400_000}, {"deep": "agent_id"}])
def test_long_input_is_understood_from_its_beginning(
    home: Home, interstat: Interstat, daemon: Daemon, tool_input: dict[str, str]
) -> None:
    """Field names inside of a tool's input mean nothing."""
    exhausted(home)
    daemon.kill()
    claude = Claude(home)
    calls = [{"tool_name": "Read", "tool_input": {"agent_id": "a", **tool_input}, "session_id": "other"}]
    assert call(claude, "PostToolBatch", tool_calls=calls).stop
    denied = call(claude, "PreToolUse", tool_name="Agent", tool_input={"session_id": "other", **tool_input})
    assert denied.decision == "deny"
    prompt = "<task-notification>" + "x" * 400_000
    assert call(claude, "UserPromptSubmit", prompt=prompt) == SILENT
    assert call(claude, "UserPromptSubmit", prompt=prompt[1:]).decision == "block"


@both_clients
@pytest.mark.parametrize("what", ["a directory that others can write to", "a link to a directory", "a damaged file"])
def test_untrusted_state_stops_nothing(home: Home, interstat: Interstat, daemon: Daemon, what: str) -> None:
    exhausted(home)
    assert daemon.stop() == 0
    state = home.socket.parent / "state"
    if what == "a directory that others can write to":
        state.chmod(0o777)
    elif what == "a link to a directory":
        state.rename(home.root / "moved")
        state.symlink_to(home.root / "moved")
    else:
        (state / "runs" / "r1").write_text("run=r1\nstate=exceeded\nenforcement=hard\n")
    assert call(Claude(home), "UserPromptSubmit", prompt="go on") == SILENT


@both_clients
def test_debug_and_flags_do_not_open_the_gate(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    exhausted(home)
    daemon.kill()
    claude = Claude(home)
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    command = [*CTL, "hook", "--run", "r1", "--timeout", "5"]
    environ = {**home.environ, "FLUXBUDGET_DEBUG": "1"}
    result = subprocess.run(command, env=environ, input=raw, capture_output=True, timeout=60, check=True)
    assert json.loads(result.stdout)["decision"] == "block"
    assert b"no daemon at" in result.stderr


@both_clients
@pytest.mark.parametrize("places", [("run", "elsewhere"), ("elsewhere", "run")])
def test_daemon_that_moves_takes_the_marker_along(home: Home, interstat: Interstat, places: tuple[str, str]) -> None:
    """What is left at its old socket no longer counts, so a limit that was lifted since then stops nothing."""
    sockets = [home.socket if place == "run" else home.root / place / "sock" for place in places]
    for socket in sockets:
        socket.parent.parent.mkdir(mode=0o700, exist_ok=True)
    claude = Claude(home)
    raw = json.dumps(claude.hook_input("UserPromptSubmit", prompt="go on")).encode()
    home.socket = sockets[0]
    with serving_until(home, "SIGKILL"):
        exhausted(home, scope="b1")
    home.socket = sockets[1]
    with serving_until(home, "SIGKILL"):
        assert markers(home) == {"r1"}
    assert is_stop(parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_SOCKET=""))
    with serving_until(home, "SIGKILL"):
        home.ok("run", "set", "--run", "r1", "--budget", "2000")
        wait_for(lambda: markers(home) == set(), "the marker to go")
    for path in ("", *map(str, sockets)):
        assert parse(claude, "UserPromptSubmit", raw, FLUXBUDGET_SOCKET=path) == SILENT, path
    assert not any(left.is_file() for left in (sockets[0].parent / "hard").iterdir())


# --- the marker


def test_marker_follows_the_limit(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """It goes when the limit is raised, softened or removed, and when the run ends."""
    run = exhausted(home)
    found = read_state_file(home, "runs", run) or {}
    assert (found["state"], found["enforcement"]) == ("exceeded", "hard")

    def change(*flags: str, is_stopped: bool) -> None:
        home.ok("run", "set", "--run", run, *flags)
        wait_for(lambda: (run in markers(home)) == is_stopped, f"the marker after {flags}")

    change("--budget", "2000", is_stopped=False)
    change("--budget", "900", is_stopped=True)
    change("--enforcement", "soft", is_stopped=False)
    change("--enforcement", "hard", is_stopped=True)
    home.ok("run", "finish", "--run", run)
    wait_for(lambda: markers(home) == set(), "the marker to go")


def test_marker_is_private_and_empty(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    exhausted(home)
    marker = home.socket.parent / "hard" / "r1"
    assert (marker.stat().st_size, marker.stat().st_mode & 0o777, marker.parent.stat().st_mode & 0o777) == (
        0,
        0o600,
        0o700,
    )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_marker_and_files_outlive_the_daemon(home: Home, interstat: Interstat, daemon: Daemon, how: str) -> None:
    """A daemon that is stopped removes those of other runs. The next one keeps the rest until it knows the run."""
    run = exhausted(home, scope="b1")
    started(home, id="r2", session="s2", token_budget=BUDGET, enforcement="hard")
    state = home.socket.parent / "state"
    wait_for((state / "runs" / "r2").exists, "the other run's file")
    with without_daemon(daemon, how):
        pass
    kept = {"runs/r1", "sessions/s1", "scopes/b1"}

    def found() -> set[str]:
        return {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()} - {"alive"}

    assert found() == kept | ({"runs/r2", "sessions/s2"} if how == "SIGKILL" else set())
    assert markers(home) == {"r1"}
    second = home.start(wait=False)
    wait_for(lambda: _is_there(home, "r2"), "the next daemon's file")
    second.wait_until_ready()
    home.ok("run", "set", "--run", run, "--budget", "2000")
    wait_for(lambda: markers(home) == set(), "the marker to go")
    assert second.stop() == 0
    assert found() == set()


def _is_there(home: Home, run: str) -> bool:
    """True if a run has a file. The marker of the stopped run is there all the time."""
    assert markers(home) == {"r1"}
    assert (home.socket.parent / "state" / "sessions" / "s1").exists()
    return (home.socket.parent / "state" / "runs" / run).exists()


def test_marker_of_an_unknown_run_is_removed_at_the_start(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A run is unknown, for example, after the ledger was lost."""
    exhausted(home)
    daemon.kill()
    shutil.rmtree(home.state)
    home.start()
    assert markers(home) == set()
    wait_for(lambda: not (home.socket.parent / "state" / "runs" / "r1").exists(), "the state file to go")


@pytest.mark.parametrize("what", ["", "hard", "hard/r1", "state"])
def test_removed_marker_is_restored(home: Home, interstat: Interstat, daemon: Daemon, what: str) -> None:
    """It is removed alone, or with the directories."""
    exhausted(home)
    place = home.socket.parent / what
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    wait_for(lambda: markers(home) == {"r1"}, "the marker")
    wait_for((home.socket.parent / "state" / "sessions" / "s1").exists, "the session's file")
    daemon.kill()
    assert is_stop(call(Claude(home), "UserPromptSubmit", prompt="go on"))


def test_moved_session_is_free(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """It is free even if its link was not changed before the daemon was killed."""
    exhausted(home)
    started(home, id="r2", session="s2", token_budget=BUDGET)
    link = home.socket.parent / "state" / "sessions" / "s1"
    home.ok("run", "detach", "--session", "s1")
    wait_for(lambda: not link.is_symlink(), "the link to go")
    daemon.kill()
    link.symlink_to("../runs/r1")
    home.start()
    wait_for(lambda: not link.is_symlink(), "the old link to go")
    assert markers(home) == {"r1"}


def test_uninstalled_service_leaves_no_marker(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    exhausted(home)
    assert daemon.stop() == 0
    (home.socket.parent / "hard" / "mine").write_text("x")
    leftovers.remove_leftovers(str(home.socket))
    assert sorted(path.name for path in home.socket.parent.iterdir()) == ["hard"]
    assert markers(home) == {"mine"}
