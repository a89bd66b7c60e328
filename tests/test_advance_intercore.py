"""`advance` on an intercore run: the daemon checks it, and the client runs `ic`. The daemon is scripted."""

import fcntl
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetctl import intercore
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import messages
from harness import ic
from harness.daemon import CTL, PATIENCE, Home, killed, wait_for
from harness.scripted_daemon import AT, Answered, ScriptedDaemon, error

SPEND = messages.Spend(
    budget=1000, spent=500, measured=500, provisional=0, reserved=0, remaining=500, pct=50.0,
    state="ok", stale=False, stale_why=None,
)  # fmt: skip
MOVED = {"advanced": True, "from_phase": "planned", "to_phase": "executing", "event_type": "advance", "reason": ""}
BLOCKED = {**MOVED, "advanced": False, "event_type": "block", "reason": "gate blocked advance"}


class IntercoreDaemon(ScriptedDaemon):
    """Allows every advance of the intercore run r1; `allowed` is its answer."""

    def __init__(self, home: Home) -> None:
        super().__init__(home.socket, self._answer)
        self.allowed = messages.AdvanceAnswer(
            run="r1", advanced=False, line="not_advanced|planned|x", phase="planned", completed=None, overridden=None,
            note="", spend=SPEND, ic_run="r1", ic_directory=str(home.project),
        )  # fmt: skip
        # The run before and after `ic` has moved it.
        self.before: messages.RunShowAnswer | messages.ErrorAnswer = _shown(home, "planned")
        self.after: messages.RunShowAnswer | messages.ErrorAnswer = _shown(home, "executing")

    def _answer(self, request: messages.AnyRequest) -> Answered:
        if isinstance(request, messages.Command):
            return messages.CommandAnswer(mine=False)
        if isinstance(request, messages.Advance):
            return self.allowed
        if isinstance(request, messages.RunShow):
            is_again = isinstance(self.asked[-2:][0], messages.RunShow) and len(self.asked) > 1
            return self.after if is_again else self.before
        return error("unknown_op")


def _shown(home: Home, phase: str) -> messages.RunShowAnswer:
    run = messages.RunInfo(
        id="r1", scope="b1", project_dir=str(home.project), goal="", complexity=3, phases=("planned", "executing"),
        phase=phase, token_budget=1000, warn_pct=80, enforcement="soft", cost_basis="billing", status="active",
        started_at=AT, ended_at=None,
    )  # fmt: skip
    tally: dict[str, Any] = {name: 0 for name in messages.Tally.__struct_fields__ if name != "name"}
    line = messages.PhaseLine(
        **{**tally, "name": "planned", "billing": 400}, state="completed", since=AT, until=AT, spent=400, provisional=0,
        estimate=700, estimate_source="table", sample_size=0, override=None,
    )  # fmt: skip
    return messages.RunShowAnswer(
        run=run, spend=msgspec.structs.replace(SPEND, spent=600), totals=messages.Tally(name="", **tally),
        by_phase=(line,), by_stage=(), by_agent=(), by_model=(), by_session=(), sources=(), attachments=(),
    )  # fmt: skip


@pytest.fixture
def scripted(home: Home) -> Iterator[IntercoreDaemon]:
    (home.project / ".clavain").mkdir()
    (home.project / ".clavain" / "intercore.db").touch()
    with IntercoreDaemon(home) as daemon:
        yield daemon


def advance(
    home: Home, path: Path | None, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `advance`; `path` is the directory of `ic` (None: there is no `ic`)."""
    places = "/usr/bin:/bin" if path is None else f"{path}:/usr/bin:/bin"
    return home.ctl("advance", "--from", "planned", *arguments, environ={"PATH": places}, cwd=cwd)


def test_ic_moves_the_run(home: Home, scripted: IntercoreDaemon, tmp_path: Path, client: str) -> None:
    """It runs in the project, whatever directory the client is in; then the daemon reads the database again."""
    path = ic.printing(tmp_path / "bin", MOVED)
    result = advance(home, path, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "advanced|planned|executing\n", "")
    assert ic.called(path) == (str(home.project), ["--json", "run", "advance", "r1"])
    asked = [messages.Advance, messages.RunShow, messages.RunShow]
    assert [type(request) for request in scripted.asked[-3:]] == asked


def test_json_has_the_numbers_after_the_move(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    found = json.loads(advance(home, ic.printing(tmp_path / "bin", MOVED), "--json").stdout)
    assert (found["advanced"], found["line"], found["phase"]) == (True, "advanced|planned|executing", "executing")
    assert (found["completed"]["name"], found["completed"]["billing"], found["spend"]["spent"]) == ("planned", 400, 600)


def test_reason_of_an_override_is_passed_on(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """Byte by byte, as one argument."""
    reason = "it's \udcff $(touch x); -- ünd"
    scripted.allowed = msgspec.structs.replace(scripted.allowed, overridden="it's \uefff $(touch x); -- ünd")
    path = ic.printing(tmp_path / "bin", MOVED)
    assert advance(home, path).returncode == 0
    words = (path / "words").read_bytes().splitlines()
    assert words[4:] == [os.fsencode(f"--skip-reason={reason}")]
    assert not (home.project / "x").exists()


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (BLOCKED, "gate_blocked|planned|gate blocked advance"),
        (
            {**BLOCKED, "event_type": "pause", "reason": "auto_advance disabled"},
            "manual_pause|planned|auto_advance disabled",
        ),
        ({**BLOCKED, "event_type": "budget", "reason": "a\n\x1b[31m"}, "not_advanced|planned|a\\n\\x1b[31m"),
        ({"advanced": False, "from_phase": "planned", "to_phase": ""}, "not_advanced|planned|no reason"),
        ({**BLOCKED, "reason": None, "more": [1]}, "gate_blocked|planned|no reason"),
        ({"advanced": False, "event_type": None, "reason": "why"}, "not_advanced|planned|why"),
    ],
)
def test_ic_refuses(
    home: Home, scripted: IntercoreDaemon, tmp_path: Path, printed: dict[str, object], line: str
) -> None:
    """Its reason is one line, and the exit code is 1."""
    result = advance(home, ic.printing(tmp_path / "bin", printed, code=1, err="refused\n"))
    assert (result.returncode, result.stdout, result.stderr) == (1, f"{line}\n", "")
    assert isinstance(scripted.asked[-2], messages.Advance)


def test_without_ic(home: Home, scripted: IntercoreDaemon) -> None:
    result = advance(home, None)
    assert (result.returncode, result.stdout) == (65, "")
    assert "'ic' is not on PATH" in result.stderr
    assert "hint: install intercore" in result.stderr


def test_ic_that_cannot_be_started(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    path = ic.printing(tmp_path / "bin", MOVED)
    (path / "ic").write_text("#!/nowhere/interpreter\n")
    result = advance(home, path)
    assert (result.returncode, result.stdout) == (65, "")
    assert "cannot be started" in result.stderr


def test_relative_path_is_the_callers(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """A relative entry of PATH is relative to the caller's directory, not to the project."""
    ic.printing(tmp_path / "bin", MOVED)
    assert advance(home, Path("bin"), cwd=tmp_path).stdout == "advanced|planned|executing\n"


@pytest.mark.parametrize(
    ("printed", "code", "said"),
    [
        ("", 2, "exit code 2: ic: it is broken"),
        ("usage: ic run advance\n", 3, "exit code 3: ic: it is broken"),
        ("", 0, "exit code 0"),
        (MOVED, 1, "exit code 1"),
        (BLOCKED, 0, "exit code 0"),
        ("null", 0, "exit code 0"),
        ("[" * 100_000, 0, "exit code 0"),
        ('{"advanced": true, "from_phase": "\\ud800"', 0, "exit code 0"),
        ({"advanced": True}, 0, "exit code 0"),
    ],
)
def test_ic_fails(home: Home, scripted: IntercoreDaemon, tmp_path: Path, printed: object, code: int, said: str) -> None:
    """An error, wrong usage or garbage: the run may or may not have moved, and the message quotes `ic`."""
    result = advance(home, ic.printing(tmp_path / "bin", printed, code=code, err="ic: it is broken\nmore\n"))
    assert (result.returncode, result.stdout) == (65, "")
    assert said in result.stderr
    assert f"hint: run 'ic run status r1' in {home.project}" in result.stderr


def test_ic_that_hangs_is_killed_with_what_it_started(
    home: Home, scripted: IntercoreDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intercore, "SECONDS", 1.0)
    os.mkfifo(tmp_path / "fifo")
    path = ic.printing(tmp_path / "bin", "", then=f'exec 3>"{tmp_path}/fifo"; sleep 1000 & wait')
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    monkeypatch.setenv("FLUXBUDGET_SOCKET", str(home.socket))
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(Failure) as failure:
            intercore.advance(scripted.allowed, 60.0)
        assert failure.value.exit_code == 75
        assert "did not end within 1 s" in failure.value.message
        wait_for(lambda: _read(reader) == b"", "the end of what ic has started")
    finally:
        os.close(reader)


def test_no_directory_for_temporary_files(
    home: Home, scripted: IntercoreDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sandbox."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setenv("PATH", f"{ic.printing(tmp_path / 'bin', MOVED)}:/usr/bin:/bin")
    monkeypatch.setenv("FLUXBUDGET_SOCKET", str(home.socket))
    assert intercore.advance(scripted.allowed, 60.0).line == "advanced|planned|executing"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_client_that_is_ended_ends_ic(
    home: Home, scripted: IntercoreDaemon, tmp_path: Path, number: signal.Signals
) -> None:
    """If `timeout` ends the client, for example, no process is left behind."""
    # A process that nohup has started ignores SIGHUP, and so would the client.
    before = signal.signal(number, signal.SIG_DFL)
    os.mkfifo(tmp_path / "fifo")
    path = ic.printing(tmp_path / "bin", "", then=f'exec 3>"{tmp_path}/fifo"; echo >&3; sleep 1000 & wait')
    command = [*CTL, "advance", "--from", "planned", "--timeout", f"{PATIENCE:g}"]
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        environ = {**home.environ, "PATH": f"{path}:/usr/bin:/bin"}
        with killed(subprocess.Popen(command, env=environ, cwd=home.project, stdout=subprocess.PIPE)) as process:
            signal.signal(number, before)
            wait_for(lambda: _read(reader) == b"\n", "ic to run")
            process.send_signal(number)
            assert process.wait(PATIENCE) == 128 + number
        wait_for(lambda: _read(reader) == b"", "the end of what ic has started")
    finally:
        os.close(reader)


def test_ic_that_writes_without_end_is_killed(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """It is killed before it fills the disk, and before its time limit."""
    result = advance(home, ic.printing(tmp_path / "bin", "", then="exec yes"))
    assert (result.returncode, result.stdout) == (65, "")
    assert "wrote too much" in result.stderr


def _read(fifo: int) -> bytes | None:
    """Return what is in a FIFO: nothing if it has no writer, None if its writers have written nothing."""
    try:
        return os.read(fifo, 1)
    except BlockingIOError:
        return None


def _is_running(pid: int) -> bool:
    """Return True if a process runs; a zombie, which nothing may reap here, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_background_process_of_ic_is_left_alone(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """Its hooks may run on; the client waits for `ic` only, although they have its stdout."""
    path = ic.printing(tmp_path / "bin", MOVED, then=f'sleep 1000 & echo $! >"{tmp_path}/pid"')
    result = advance(home, path)
    pid = int((tmp_path / "pid").read_text())
    try:
        assert (result.returncode, result.stdout) == (0, "advanced|planned|executing\n")
        assert _is_running(pid)
    finally:
        os.kill(pid, 9)


def test_database_that_is_gone(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """`ic` is not called, because it would create an empty one."""
    (home.project / ".clavain" / "intercore.db").unlink()
    path = ic.printing(tmp_path / "bin", MOVED)
    result = advance(home, path)
    assert (result.returncode, result.stdout) == (65, "")
    assert "is gone" in result.stderr
    assert ic.called(path) is None


def test_daemon_that_fails_after_the_move(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """The run has moved, and the answer says so."""
    scripted.after = error("timeout", "too slow")
    result = advance(home, ic.printing(tmp_path / "bin", MOVED))
    assert (result.returncode, result.stdout) == (0, "advanced|planned|executing\n")
    assert "the daemon has not seen it yet: too slow" in result.stderr


def test_run_that_another_process_has_moved_meanwhile(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """`ic` moves a run on from whatever phase it is in. The line has the actual phases."""
    printed = {**MOVED, "from_phase": "executing", "to_phase": "review"}
    result = advance(home, ic.printing(tmp_path / "bin", printed))
    assert (result.returncode, result.stdout) == (0, "advanced|executing|review\n")
    assert "the run was in executing when ic moved it" in result.stderr


def test_only_one_of_two_clients_moves_the_run(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    """The daemon has allowed both; when the second one's turn comes, it finds that the run has moved."""
    fd = os.open(home.project / ".clavain", os.O_RDONLY)
    path = ic.printing(tmp_path / "bin", MOVED)
    command = [*CTL, "advance", "--from", "planned", "--timeout", f"{PATIENCE:g}"]
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        process = subprocess.Popen(
            command, env={**home.environ, "PATH": f"{path}:/usr/bin:/bin"}, cwd=home.project, stdout=subprocess.PIPE
        )
        with killed(process):
            wait_for(lambda: [one for one in scripted.asked if isinstance(one, messages.Advance)], "the first answer")
            scripted.before = scripted.after
            fcntl.flock(fd, fcntl.LOCK_UN)
            out, _ = process.communicate()
    finally:
        os.close(fd)
    assert (process.returncode, out) == (1, b"stale_phase|planned|Phase already advanced to executing\n")
    assert ic.called(path) is None


def test_refusal_of_the_daemon_does_not_start_ic(home: Home, scripted: IntercoreDaemon, tmp_path: Path) -> None:
    line = "budget_exceeded|planned|1000/1000 billing tokens"
    scripted.allowed = msgspec.structs.replace(scripted.allowed, line=line, ic_run=None, ic_directory=None)
    path = ic.printing(tmp_path / "bin", MOVED)
    result = advance(home, path)
    assert (result.returncode, result.stdout) == (1, f"{line}\n")
    assert ic.called(path) is None
