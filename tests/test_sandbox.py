"""Clients that may not use a socket read the state files, but only those of a running daemon."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.state_names import ALIVE, file_name, state_directory
from fluxbudgetd.wire.text import fold
from harness.daemon import CTL, Daemon, Home, killed, started, wait_for
from harness.false_daemon import answering, frame
from harness.interstat import Interstat
from harness.native import both_clients
from harness.pipes import full_pipe
from harness.privilege import OBEDIENT, needs_root
from harness.sandbox import SANDBOX, sandbox
from harness.sandboxed import run_under, sandboxed

AS_OF = "2026-11-22T00:12:26Z"
GONE = "the daemon is gone"
CONTENT = {
    "run": "r1",
    "phase": "executing",
    "state": "warning",
    "budget": "250000",
    "spent": "208499",
    "remaining": "1501",
    "pct": "83.3",
    "reserved": "40000",
    "stale": "0",
    "cost_basis": "billing",
    "enforcement": "soft",
    "line": "'executing ██████▋░ 208k/250k 83% (+40k reserved)'",
    "as_of": AS_OF,
}
#: The keys that files of older daemons do not have.
LATER = ("cost_basis", "enforcement", "line")
UNLIMITED = {"state": "unlimited", "budget": "", "remaining": "", "pct": ""}


class States:
    """State files that the test writes, and the lock of a running daemon."""

    def __init__(self, home: Home) -> None:
        self.directory = Path(state_directory(str(home.socket)))
        self.directory.mkdir(parents=True, mode=0o700)
        for kind in ("runs", "sessions", "scopes"):
            (self.directory / kind).mkdir()
        (self.directory / ALIVE).touch(mode=0o600)

    def write(self, run: str = "r1", **changes: str) -> Path:
        lines = "".join(f"{key}={value}\n" for key, value in {**CONTENT, "run": run, **changes}.items())
        place = self.directory / "runs" / str(file_name(run))
        place.write_text(lines)
        return place

    def link(self, kind: str, name: str, run: str) -> None:
        (self.directory / kind / str(file_name(name))).symlink_to(f"../runs/{file_name(run)}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, as a running daemon does."""
        with (self.directory / ALIVE).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@pytest.fixture
def states(home: Home) -> States:
    return States(home)


@pytest.fixture
def alive(states: States) -> Iterator[States]:
    with states.locked():
        yield states


def from_file(result: subprocess.CompletedProcess[str], reason: int, code: int = 0) -> str:
    """Require an answer from the state file and the socket's error on stderr; return stdout."""
    assert result.returncode == code, result
    line = result.stderr.splitlines()[0]
    assert line.startswith(f"fluxbudgetctl: from the state file, as of {AS_OF}: "), result
    assert os.strerror(reason) in line
    return result.stdout


@both_clients
@sandboxed
def test_sandbox_gets_the_same_answers_from_the_state_file(home: Home, alive: States) -> None:
    """A daemon is running, but the sandbox keeps the client from connecting to it."""
    alive.write()
    with answering(home, frame({"ok": False})) as asked:
        assert from_file(run_under(SANDBOX, home, "remaining", "--run", "r1"), errno.EPERM) == "1501\n"
        printed = from_file(run_under(SANDBOX, home, "env", "--run", "r1"), errno.EPERM)
        assert printed == "export FLUX_BUDGET_REMAINING=1501\n"
        printed = from_file(run_under(SANDBOX, home, "statusline", "--run", "r1"), errno.EPERM)
        assert printed == "executing ██████▋░ 208k/250k 83% (+40k reserved)\n"
        assert from_file(run_under(SANDBOX, home, "check", "--run", "r1"), errno.EPERM) == "ok\n"
        found = json.loads(from_file(run_under(SANDBOX, home, "remaining", "--run", "r1", "--json"), errno.EPERM))
    assert not asked
    assert found == {
        "run": "r1",
        "phase": "executing",
        "budget": 250_000,
        "spent": 208_499,
        "measured": None,
        "provisional": None,
        "reserved": 40_000,
        "remaining": 1_501,
        "pct": 83.3,
        "state": "warning",
        "stale": False,
        "stale_why": None,
    }


@both_clients
@sandboxed
@pytest.mark.parametrize("reason", [errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENOSYS], ids=os.strerror)
def test_every_error_of_a_forbidden_socket(home: Home, alive: States, reason: int) -> None:
    alive.write()
    assert from_file(run_under(sandbox(reason), home, "remaining", "--run", "r1"), reason) == "1501\n"
    result = run_under(sandbox(reason), home, "advance", "--run", "r1", "--from", "executing")
    assert (result.returncode, result.stdout) == (69, "")
    assert "sandbox" in result.stderr.splitlines()[1]


@both_clients
@sandboxed
@pytest.mark.parametrize("verb", ["ping", "status", "doctor"])
def test_other_verbs_report_the_forbidden_socket(home: Home, alive: States, verb: str) -> None:
    alive.write()
    result = run_under(SANDBOX, home, verb, environ={"FLUXBUDGET_RUN": "r1"})
    assert result.returncode == (1 if verb == "doctor" else 69)
    assert os.strerror(errno.EPERM) in (result.stdout if verb == "doctor" else result.stderr)
    assert "state file" not in result.stderr
    assert verb == "doctor" or (result.stdout == "" and "sandbox" in result.stderr.splitlines()[1])


@sandboxed
def test_doctor_in_the_sandbox_with_an_existing_socket(home: Home) -> None:
    with answering(home, frame({"ok": False})):
        result = run_under(SANDBOX, home, "doctor")
    assert result.returncode == 1
    assert os.strerror(errno.EPERM) in result.stdout
    assert "no fluxbudgetd serves" not in result.stdout


@both_clients
@sandboxed
def test_hook_in_the_sandbox_is_silent(home: Home, alive: States) -> None:
    alive.write()
    result = subprocess.run(
        [*SANDBOX, *CTL, "hook", "--timeout", "20"], env=home.environ, input=b"{}", capture_output=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@both_clients
def test_socket_without_permission(home: Home, alive: States) -> None:
    alive.write()
    with answering(home, frame({"ok": False})) as asked:
        home.socket.chmod(0)
        assert from_file(run_under(OBEDIENT, home, "remaining", "--run", "r1"), errno.EACCES) == "1501\n"
    assert not asked


@both_clients
def test_deleted_and_dead_sockets_of_a_running_daemon(home: Home, alive: States) -> None:
    alive.write()
    assert from_file(home.ctl("remaining", "--run", "r1"), errno.ENOENT) == "1501\n"
    with answering(home, b""):
        pass
    assert from_file(home.ctl("remaining", "--run", "r1"), errno.ECONNREFUSED) == "1501\n"


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "env", "statusline"])
@pytest.mark.parametrize("lock", ["free", "absent"])
def test_file_of_a_dead_daemon_is_not_used(home: Home, states: States, verb: str, lock: str) -> None:
    states.write()
    if lock == "absent":
        (states.directory / ALIVE).unlink()
    result = home.ctl(verb, "--run", "r1", "--timeout", "20")
    assert (result.returncode, result.stdout) == (69, "")
    line, hint = result.stderr.splitlines()
    assert os.strerror(errno.ENOENT) in line
    assert f"{GONE}; its last state of run r1 is from {AS_OF}" in line
    assert hint == "hint: start it with 'fluxbudgetd'"


@both_clients
def test_killed_process_releases_the_lock(home: Home, states: States) -> None:
    states.write()
    holds = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(); time.sleep(600)"
    command = [sys.executable, "-u", "-c", holds, str(states.directory / ALIVE)]
    with killed(subprocess.Popen(command, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert from_file(home.ctl("remaining", "--run", "r1"), errno.ENOENT) == "1501\n"
        process.kill()
        process.wait()
        assert GONE in home.ctl("remaining", "--run", "r1").stderr


@both_clients
def test_default_is_only_used_without_a_state_file(home: Home, states: States) -> None:
    states.write()
    with states.locked():
        assert home.ok("remaining", "--run", "r1", "--default", "5") == "1501"
    assert home.ok("remaining", "--run", "r1", "--default", "5") == "5"


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "env", "statusline"])
def test_failures_after_connecting_are_reported(home: Home, alive: States, verb: str) -> None:
    """A daemon that is slow, refuses or hangs up is there, so the state file is not used."""
    alive.write()
    for answer, code in ((None, 75), (b"", 69), (frame({"ok": False, "error": {"code": "no_run"}}), 3)):
        with answering(home, answer):
            result = home.ctl(verb, "--run", "r1", "--timeout", "20" if answer is not None else "0.5")
        assert result.returncode == code
        assert "state file" not in result.stderr
        home.socket.unlink()


@both_clients
def test_run_without_a_budget_and_exhausted_run(home: Home, alive: States) -> None:
    alive.write("free", **UNLIMITED, line="")
    alive.write("full", line="", state="exceeded", spent="1234567", remaining="0", pct="493.8", reserved="0")
    assert from_file(home.ctl("remaining", "--run", "free"), errno.ENOENT, 3) == "0\n"
    assert from_file(home.ctl("remaining", "--run", "free", "--default", "7"), errno.ENOENT, 3) == "7\n"
    assert from_file(home.ctl("env", "--run", "free"), errno.ENOENT, 3) == "unset FLUX_BUDGET_REMAINING\n"
    found = json.loads(from_file(home.ctl("remaining", "--run", "free", "--json"), errno.ENOENT, 3))
    assert (found["remaining"], found["budget"], found["pct"], found["state"]) == (None, None, None, "unlimited")
    assert from_file(home.ctl("statusline", "--run", "free", "--no-colour"), errno.ENOENT) == "executing 208k\n"
    assert from_file(home.ctl("remaining", "--run", "full"), errno.ENOENT) == "0\n"
    assert from_file(home.ctl("env", "--run", "full"), errno.ENOENT) == "export FLUX_BUDGET_REMAINING=1\n"
    printed = from_file(home.ctl("statusline", "--run", "full"), errno.ENOENT)
    assert printed == "executing 1.2M/250k 493%\n"


@both_clients
def test_stale_numbers_are_marked(home: Home, alive: States) -> None:
    alive.write(stale="1", state="ok", pct="9.9", spent="999", line="")
    result = home.ctl("remaining", "--run", "r1", "--json")
    assert json.loads(from_file(result, errno.ENOENT))["stale"] is True
    assert "last known numbers" in result.stderr.splitlines()[1]
    printed = from_file(home.ctl("statusline", "--run", "r1"), errno.ENOENT)
    assert printed == "executing 999/250k 9% (stale)\n"


@both_clients
@pytest.mark.parametrize(
    ("width", "line"),
    [
        (48, "executing ██████▋░ 208k/250k 83% (+40k reserved)"),
        (47, "executing 208k/250k 83%"),
        (23, "executing 208k/250k 83%"),
        (22, "executing 83%"),
        (13, "executing 83%"),
        (12, "83%"),
        (3, "83%"),
        (2, "83"),
    ],
)
def test_line_fits_the_width(home: Home, alive: States, width: int, line: str) -> None:
    alive.write()
    printed = from_file(home.ctl("statusline", "--run", "r1", "--width", str(width), "--no-colour"), errno.ENOENT)
    assert printed == line + "\n"


@both_clients
def test_run_is_chosen_by_name(home: Home, alive: States) -> None:
    """The order is the usual one, but the directory is not considered."""
    for number, run in enumerate(("by-flag", "by-env", "by-bead", "by-code", "by-session"), 1):
        alive.write(run, remaining=str(number))
    alive.link("scopes", "a/b", "by-bead")
    alive.link("sessions", "s1", "by-code")
    alive.link("sessions", "..", "by-session")
    environ = {
        "FLUXBUDGET_RUN": "by-env",
        "CLAVAIN_BEAD_ID": "a/b",
        "CLAUDE_CODE_SESSION_ID": "s1",
        "CLAUDE_SESSION_ID": "..",
    }
    assert home.ok("remaining", "--run", "by-flag", environ=environ) == "1"
    assert home.ok("remaining", "--scope", "a/b", environ=environ) == "3"
    assert home.ok("remaining", "--session", "s1", environ=environ) == "4"
    for number, name in enumerate(tuple(environ), 2):
        assert home.ok("remaining", environ=environ) == str(number), name
        environ.pop(name)
    unknown = {"CLAVAIN_BEAD_ID": "unknown", "CLAUDE_CODE_SESSION_ID": "unknown", "CLAUDE_SESSION_ID": ".."}
    assert home.ok("remaining", environ=unknown) == "5"
    for arguments, environ, hint in (
        (["--run", "unknown"], {}, "start it"),
        (["--run", "r" * 201], {}, "start it"),
        ([], {"FLUXBUDGET_RUN": "unknown", "CLAVAIN_BEAD_ID": "a/b"}, "name the run"),
        ([], {}, "name the run"),
    ):
        result = home.ctl("remaining", *arguments, environ=environ)
        assert (result.returncode, result.stdout) == (69, "")
        assert "no state file describes the run" in result.stderr.splitlines()[0]
        assert result.stderr.splitlines()[1].startswith(f"hint: {hint}")


@both_clients
@sandboxed
def test_status_line_shows_the_session_in_its_input(home: Home, alive: States) -> None:
    """As in the daemon, it comes before the environment's sessions and after everything else that names a run."""
    for spent, name in enumerate(("a", "b", "by-run", "by-bead"), 1):
        alive.write(name, **UNLIMITED, spent=str(spent), line="")
    alive.link("sessions", "of-the-shell", "a")
    alive.link("sessions", "s\u00e9/1", "b")
    alive.link("scopes", "bead", "by-bead")
    environ = {"CLAUDE_CODE_SESSION_ID": "of-the-shell"}

    def shown(data: str, *arguments: str, **more: str) -> str:
        patient = ["statusline", "--no-colour", "--timeout", "20", *arguments]
        result = run_under(SANDBOX, home, *patient, environ={**environ, **more}, data=data)
        return from_file(result, errno.EPERM).removeprefix("executing ").strip()

    session_b = '{"cwd": "/", "session_id" :\n"s\u00e9/1", "model": {}}'
    assert shown(session_b) == "2"
    assert shown(session_b, "--session", "of-the-shell") == "1"
    assert shown(session_b, FLUXBUDGET_RUN="by-run") == "3"
    assert shown(session_b, CLAVAIN_BEAD_ID="bead") == "4"
    # If the session is not plain text, or is unknown, the environment decides.
    for data in ("", "{}", '{"session_id": "unknown"}', '{"session_id": 5, "x": "b"}', '{"session_id": ""}'):
        assert shown(data) == "1", data
    alive.link("sessions", "s\\u00e9", "b")
    assert shown('{"session_id": "s\\u00e9"}') == "1"


@both_clients
def test_names_that_are_not_utf_8_find_their_files(home: Home, alive: States) -> None:
    raw = b"s\xff/\n"
    alive.write("r9", remaining="9")
    alive.link("sessions", fold(raw), "r9")
    assert home.ctl("remaining", "--session", raw).stdout == "9\n"


def require_no_state(home: Home) -> None:
    result = home.ctl("remaining", "--run", "r1")
    assert (result.returncode, result.stdout) == (69, ""), result
    assert "no state file describes the run" in result.stderr


@both_clients
@pytest.mark.parametrize("key", [key for key in CONTENT if key not in LATER])
def test_file_without_a_required_key_is_ignored(home: Home, alive: States, key: str) -> None:
    place = alive.write()
    place.write_text("".join(line for line in place.read_text().splitlines(True) if not line.startswith(f"{key}=")))
    require_no_state(home)


@both_clients
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", ""),
        ("as_of", ""),
        ("state", "fine"),
        ("state", ""),
        ("state", "unlimited"),
        ("budget", ""),
        ("remaining", ""),
        ("remaining", "1_000"),
        ("spent", ""),
        ("spent", "-1"),
        ("spent", "1.5"),
        ("spent", "٣"),
        ("spent", "9" * 20),
        ("spent", str(2**63)),
        ("pct", ""),
        ("pct", "nan"),
        ("pct", "1e3"),
        ("pct", "."),
        ("reserved", "x"),
        ("stale", "2"),
        ("stale", ""),
    ],
)
def test_file_with_an_invalid_value_is_ignored(home: Home, alive: States, key: str, value: str) -> None:
    alive.write()
    place = alive.directory / "runs" / "r1"
    place.write_text("".join(f"{name}={value if name == key else kept}\n" for name, kept in CONTENT.items()))
    require_no_state(home)


@both_clients
def test_file_that_is_too_large_or_binary_is_ignored(home: Home, alive: States) -> None:
    place = alive.write()
    good = place.read_bytes()
    place.write_bytes(good + b"#" * (65536 - len(good)))
    assert from_file(home.ctl("remaining", "--run", "r1"), errno.ENOENT) == "1501\n"
    place.write_bytes(good + b"#" * (65537 - len(good)))
    require_no_state(home)
    place.write_bytes(good + b"x=\xff\n")
    require_no_state(home)
    place.write_bytes(b"")
    require_no_state(home)


@both_clients
def test_order_and_unknown_keys_do_not_matter(home: Home, alive: States) -> None:
    lines = [f"{key}={value}" for key, value in CONTENT.items()]
    text = "\n".join(["of_the_future=a=b", "no pair", *reversed(lines)])
    (alive.directory / "runs" / "r1").write_text(text)
    assert from_file(home.ctl("remaining", "--run", "r1"), errno.ENOENT) == "1501\n"


@both_clients
def test_other_kinds_of_files_are_ignored(home: Home, alive: States) -> None:
    place = alive.directory / "runs" / "r1"
    place.mkdir()
    assert home.ctl("remaining", "--run", "r1").returncode == 69
    place.rmdir()
    os.mkfifo(place)
    assert home.ctl("remaining", "--run", "r1").returncode == 69
    place.unlink()
    place.symlink_to("r1")
    assert home.ctl("remaining", "--run", "r1").returncode == 69


@both_clients
@needs_root("give a file away")
def test_file_of_another_user_is_not_used(home: Home, alive: States) -> None:
    os.chown(alive.write(), 12345, 12345)
    result = home.ctl("remaining", "--run", "r1")
    assert (result.returncode, result.stdout) == (69, "")


def require_no_daemon(home: Home) -> None:
    """Require the outcome of a missing daemon without state files."""
    result = home.ctl("remaining", "--run", "r1")
    assert (result.returncode, result.stdout) == (69, ""), result
    assert result.stderr.splitlines()[0].endswith(os.strerror(errno.ENOENT))


@both_clients
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_directory_that_others_may_write_to_is_not_used(home: Home, alive: States, mode: int) -> None:
    alive.write()
    alive.directory.chmod(mode)
    require_no_daemon(home)
    alive.directory.chmod(0o755)
    assert from_file(home.ctl("remaining", "--run", "r1"), errno.ENOENT) == "1501\n"


@both_clients
@needs_root("give a directory away")
def test_directory_of_another_user_is_not_used(home: Home, alive: States) -> None:
    """This holds even if a link in it leads to a file of our own."""
    alive.write()
    os.chown(alive.directory, 12345, 12345)
    require_no_daemon(home)


@both_clients
@needs_root("give a file away")
def test_lock_of_another_user_does_not_count(home: Home, alive: States) -> None:
    alive.write()
    os.chown(alive.directory / ALIVE, 12345, 12345)
    assert GONE in home.ctl("remaining", "--run", "r1").stderr


@both_clients
def test_link_in_the_directorys_place_is_not_followed(home: Home, alive: States) -> None:
    """Another user may have chosen where it leads."""
    alive.write()
    alive.directory.rename(home.root / "elsewhere")
    alive.directory.symlink_to(home.root / "elsewhere")
    require_no_daemon(home)


@both_clients
def test_control_characters_do_not_reach_the_terminal(home: Home, alive: States) -> None:
    alive.write(phase="a\x1b[2Jé", as_of="\x1b[2J", line="'\x1b[2J'")
    result = home.ctl("statusline", "--run", "r1")
    assert result.stdout == "\\x1b[2J\n"
    alive.write(phase="a\x1b[2Jé", as_of="\x1b[2J", line="")
    result = home.ctl("statusline", "--run", "r1", "--no-colour")
    assert result.stdout == "a?[2J? 208k/250k 83%\n"
    assert "\x1b" not in result.stderr


@both_clients
def test_check_of_an_exhausted_run(home: Home, alive: States) -> None:
    """The exit codes are those of an answer. A soft budget can be overridden, but the daemon does not learn of it."""
    full = {"state": "exceeded", "spent": "260", "budget": "250", "remaining": "0", "pct": "104.0"}
    alive.write("soft", **full)
    alive.write("hard", **full, enforcement="hard", cost_basis="total")
    refusal = "budget_exceeded|executing|260/250 billing tokens\n"
    assert from_file(home.ctl("check", "--run", "soft"), errno.ENOENT, 1) == refusal
    found = json.loads(from_file(home.ctl("check", "--json", "--run", "soft"), errno.ENOENT, 1))
    assert (found["allowed"], found["refusal"], found["spent"]) == (False, refusal.rstrip(), 260)
    override = ["check", "--override", "a reason", "--run"]
    result = home.ctl(*override, "soft")
    assert from_file(result, errno.ENOENT) == "ok\n"
    assert "overridden: a reason" in result.stderr
    assert from_file(home.ctl("check", "--run", "soft", environ={"CLAVAIN_SKIP_BUDGET": "y"}), errno.ENOENT) == "ok\n"
    result = home.ctl(*override, "hard")
    assert from_file(result, errno.ENOENT, 1) == refusal.replace("billing", "total")
    assert "overrides are not accepted" in result.stderr
    older = alive.write("older", **full)
    older.write_text("".join(line for line in older.read_text().splitlines(True) if not line.startswith(LATER)))
    assert from_file(home.ctl(*override, "older"), errno.ENOENT, 1) == refusal.replace("billing ", "")
    assert from_file(home.ctl("statusline", "--run", "older"), errno.ENOENT) == "executing 260/250 104%\n"


@both_clients
def test_status_line_from_the_file_is_printed_although_stderr_is_not_read(home: Home, alive: States) -> None:
    """The note that it is from the file is dropped at the deadline; the other limit here is much longer."""
    alive.write()
    with full_pipe() as pipe:
        result = subprocess.run(
            [*CTL, "statusline", "--run", "r1", "--timeout", "0.5"],
            env=home.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=pipe.writing,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stdout.decode()) == (0, "executing ██████▋░ 208k/250k 83% (+40k reserved)\n")


@both_clients
def test_check_without_a_state_file(home: Home, alive: States) -> None:
    result = home.ctl("check", "--require", "--run", "r1")
    assert (result.returncode, result.stdout) == (69, "")


@both_clients
@sandboxed
def test_real_daemons_state_files_in_the_sandbox(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """The sandbox gets the same number as other clients, and none once the daemon has been killed."""
    started(home, id="r1", token_budget=250_000, session="s1")
    interstat.insert("s1", input_tokens=50_000, output_tokens=0)
    assert home.ok("remaining", "--run", "r1") == "200000"

    def in_the_sandbox() -> bool:
        return run_under(SANDBOX, home, "remaining", "--session", "s1").stdout == "200000\n"

    wait_for(in_the_sandbox, "the state file to have the number")
    found = json.loads(run_under(SANDBOX, home, "remaining", "--run", "r1", "--json").stdout)
    answered = home.json("remaining", "--run", "r1")
    assert found == {**answered, "measured": None, "provisional": None}
    daemon.kill()
    result = run_under(SANDBOX, home, "remaining", "--session", "s1")
    assert (result.returncode, result.stdout) == (69, "")
    assert GONE in result.stderr


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_file_names_are_safe_and_distinct(one: bytes, other: bytes) -> None:
    names = [file_name(fold(raw)) for raw in (one, other)]
    for raw, name in zip((one, other), names, strict=True):
        if name is None:
            assert not raw or len(raw) > 200 // 3
            continue
        assert 0 < len(name) <= 200
        assert not name.startswith(".")
        assert set(name) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-%")
    assert one == other or None in names or names[0] != names[1]


def test_file_names_by_example() -> None:
    assert [file_name(name) for name in ("a.b", ".a", "é/", "", "a" * 200, "a" * 201)] == [
        "a.b", "%2Ea", "%C3%A9%2F", None, "a" * 200, None,
    ]  # fmt: skip
