"""`doctor` works when everything else fails, and never fails itself."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from fluxbudgetctl import cli
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.totals import Totals
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.messages import Finding
from harness.daemon import CTL, Daemon, Home, started, wait_for
from harness.interstat import Interstat
from harness.live import transcript
from harness.service import service_over

SWITCH = "CLAUDE_CODE_SKIP_PROMPT_HISTORY"


def problems(home: Home, *, environ: dict[str, str] | None = None, cwd: Path | None = None) -> list[str]:
    """Return what `doctor` finds; require a hint with each, and that nothing else is printed."""
    result = home.ctl("doctor", "--json", environ=environ, cwd=cwd)
    assert result.stderr == "", result
    findings = json.loads(result.stdout)["findings"]
    assert all(finding["what"] and finding["hint"] for finding in findings), findings
    assert result.returncode == (1 if findings else 0)
    return [finding["what"] for finding in findings]


def remove_state(home: Home) -> None:
    shutil.rmtree(home.state)


def remove_ledger(home: Home) -> None:
    for path in home.state.glob("ledger.db*"):
        path.unlink()


def damage_ledger(home: Home) -> None:
    for path in home.state.glob("ledger.db*"):
        path.write_bytes(b"\xa5" * 65_536)


def remove_socket(home: Home) -> None:
    home.socket.unlink()


def remove_socket_directory(home: Home) -> None:
    home.socket.parent.rename(home.root / "removed")  # at once: the daemon writes to it


def remove_claude_directory(home: Home) -> None:
    shutil.rmtree(home.root / "claude")


def break_configuration(home: Home) -> None:
    path = home.root / ".config" / "fluxbudget" / "config.toml"
    path.parent.mkdir(parents=True)
    path.mkdir()


def remove_project(home: Home) -> None:
    shutil.rmtree(home.project)


@pytest.mark.parametrize(
    ("damage", "is_problem"),
    [
        (remove_state, True),
        (remove_ledger, True),
        (damage_ledger, None),  # noticed when the damaged part is read
        (remove_socket, None),  # bound again within seconds
        (remove_socket_directory, None),
        (remove_claude_directory, True),
        (break_configuration, True),
        (remove_project, False),
    ],
)
def test_doctor_answers_whatever_is_missing(
    home: Home, interstat: Interstat, daemon: Daemon, damage: Callable[[Home], None], *, is_problem: bool | None
) -> None:
    """Each is a finding, twice in a row; none causes a traceback or another exit code."""
    run = started(home, session="s1")
    transcript(home).response("m1", tokens=(5, 0, 0, 0))
    assert home.spent(run) == 5
    before = home.root / "before"
    before.mkdir()
    damage(home)
    for _ in range(2):
        found = problems(home, cwd=before)
        assert is_problem is None or bool(found) == is_problem, found
        assert not any("defect" in line or "internal" in line for line in found), found


def test_removed_state_directory_is_named(home: Home, daemon: Daemon) -> None:
    shutil.rmtree(home.state)
    assert any(line.startswith(f"the state directory {home.state} ") for line in problems(home))


@pytest.mark.parametrize("place", ["directory", "socket", "nothing"])
def test_doctor_without_a_daemon(home: Home, place: str) -> None:
    daemon = home.start()
    if place == "nothing":
        daemon.stop()
        shutil.rmtree(home.socket.parent)
    elif place == "socket":
        daemon.stop()
    else:
        daemon.kill()  # leaves its socket
    found = problems(home)
    assert any("fluxbudgetd" in line or str(home.socket.parent) in line for line in found), found


def test_doctor_in_a_directory_that_was_removed(home: Home, daemon: Daemon) -> None:
    gone = home.root / "gone"
    gone.mkdir()
    command = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *CTL, "doctor"]
    done = subprocess.run(command, cwd=gone, env=home.environ, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "no problems found")


def test_directories_that_vanish_while_they_are_read(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Another process moves a session's directory away and back, as fast as it can."""
    run = started(home, session="s1")
    writer = transcript(home)
    for number in range(20):
        writer.agent(f"a{number}").response(f"m{number}", request=f"r{number}", tokens=(1, 0, 0, 0))
    assert home.spent(run) == 20
    stop = threading.Event()
    own, away = writer.path.parent / "s1", writer.path.parent / "away"

    def move() -> None:
        while not stop.is_set():
            os.rename(own, away)
            os.rename(away, own)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(10):
            answer = home.ctl("doctor", "--json")
            assert answer.returncode in (0, 1), answer
            assert "defect" not in answer.stdout
            assert json.loads(answer.stdout)["daemon"] is not None
    finally:
        stop.set()
        mover.join()
    assert home.spent(run) == 20


def settings(home: Home, path: str, text: str) -> Path:
    file = home.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    "path", ["claude/settings.json", "claude/settings.local.json", "project/.claude/settings.json"]
)
@pytest.mark.parametrize(
    ("value", "is_on"), [('"1"', True), ('"true"', True), ("1", True), ('"0"', False), ('""', False), ("null", False)]
)
def test_settings_that_switch_transcripts_off(
    home: Home, daemon: Daemon, path: str, value: str, *, is_on: bool
) -> None:
    file = settings(home, path, f'{{"env": {{"{SWITCH}": {value}}}}}')
    expected = [f"{file} sets {SWITCH}: Claude Code writes no transcripts"] if is_on else []
    assert problems(home) == expected


@pytest.mark.parametrize("text", ["", "[]", "{", '{"env": []}', '{"env": 1}', "[" * 100_000, '"\\ud800"'])
def test_settings_that_cannot_be_understood_are_no_problem(home: Home, daemon: Daemon, text: str) -> None:
    settings(home, "claude/settings.json", text)
    os.mkfifo(home.root / "claude" / "settings.local.json")
    assert problems(home) == []


def test_variable_that_switches_transcripts_off(home: Home) -> None:
    """It is found in the client's environment and in the daemon's."""
    home.start(prefix=("env", f"{SWITCH}=1"))
    (found,) = problems(home)
    assert found.startswith(f"{SWITCH} is set in the daemon's environment")
    assert len(problems(home, environ={SWITCH: "true"})) == 2
    assert len(problems(home, environ={SWITCH: "0"})) == 1


def test_active_session_without_a_transcript(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """It has called a hook that shows a response, but nothing of it can be counted."""
    run = started(home, session="s1")
    home.ok("run", "start", "--session", "idle", "--project", str(home.root))
    assert problems(home) == []
    event = {"hook_event_name": "PostToolBatch", "session_id": "s1", "cwd": str(home.project)}
    home.ctl("hook", "--timeout", "60", stdin=json.dumps(event))
    expected = [f"session s1 of run {run} is active, but has no transcript and is not counted"]
    wait_for(lambda: problems(home) == expected, "doctor to find the session")
    transcript(home).response("m1", tokens=(5, 0, 0, 0))
    assert problems(home) == []
    assert home.spent(run) == 5


def test_ledger_of_another_program_is_not_touched(home: Home, daemon: Daemon) -> None:
    """`doctor` reads nothing but what the daemon has; a locked ledger is a finding at most."""
    with sqlite3.connect(home.state / "ledger.db", isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        result = home.ctl("doctor", "--json")
        assert result.returncode in (0, 1)
        assert json.loads(result.stdout)["daemon"] is not None
    connection.close()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("unexpected")])
def test_check_that_fails_is_a_finding(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """The other checks go on. (No check is known to fail, so this replaces one.)"""

    def fail(_path: str) -> Iterator[Finding]:
        raise error

    for name, value in home.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("fluxbudgetctl.commands.doctor.socket_findings", fail)
    assert cli.main(["doctor", "--json"], None) == codes.REFUSED
    first, *others = json.loads(capsys.readouterr().out)["findings"]
    assert first["what"].startswith("the socket could not be checked: ")
    assert first["hint"]
    assert any("fluxbudgetd" in finding["what"] for finding in others)


def test_refresh_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon answers with everything else. (No refresh is known to fail, so this replaces it.)"""

    async def fail(_totals: Totals, _deadline: float) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Totals, "refresh_sources", fail)

    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            context = Context(service=service, state_dir=str(tmp_path), started_at=0, connections=lambda: 0)
            asked = handle(context, messages.Doctor(wait_ms=20_000), os.getpid())
            assert isinstance(asked, Awaitable)
            answer = await asked
            assert isinstance(answer, messages.DoctorAnswer)
            (finding,) = answer.findings
            assert finding.what == "the sources could not be checked: ZeroDivisionError: division by zero"

    anyio.run(body)


def test_claude_directories_that_are_missing_or_refused(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """A configured directory must exist, and what is not followed is named."""
    missing, file = home.root / "missing", home.root / "file"
    file.touch()
    daemon.stop()
    home.start("--claude-dir", str(home.root / "claude"), "--claude-dir", str(missing), "--claude-dir", str(file))
    found = problems(home)
    assert sorted(found) == [
        f"Claude directory {file}: is not a directory",
        f"Claude directory {missing}: No such file or directory",
    ]
    missing.mkdir()
    assert problems(home) == [f"Claude directory {file}: is not a directory"]
