"""The Python and native clients: output, error messages and exit codes."""

import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fluxbudgetd import __version__
from fluxbudgetd.wire import codes
from harness.daemon import CTL, Daemon, Home, started
from harness.false_daemon import answering, replied
from harness.interstat import Interstat
from harness.native import both_clients
from harness.suspend import suspend


def clean_error(result: subprocess.CompletedProcess[str], code: int, stdout: str = "") -> str:
    """Require this exit code and stdout, and one line with a hint on stderr; return the line."""
    assert (result.returncode, result.stdout) == (code, stdout), result
    line, hint, *rest = result.stderr.splitlines()
    assert line.startswith("fluxbudgetctl: "), result
    assert hint.startswith("hint: "), result
    assert not rest, result
    return line


@pytest.mark.parametrize("verb", ["remaining", "env", "check", "ping", "statusline", "status", "version"])
def test_daemon_away(home: Home, verb: str) -> None:
    printed = f"fluxbudgetctl {__version__} (python)\n" if verb == "version" else ""
    assert "no daemon at" in clean_error(home.ctl(verb), 69, printed)


@both_clients
@pytest.mark.parametrize("flag", [["--default", "4200"], ["--default=4200"]])
def test_default_without_an_answer(home: Home, flag: list[str]) -> None:
    clean_error(home.ctl("remaining", *flag), 0, "4200\n")


@both_clients
def test_default_without_a_run_or_a_budget(home: Home, daemon: Daemon) -> None:
    """The exit code and the reason stay. With a budget, the default does not matter."""
    clean_error(home.ctl("remaining", "--default", "4200"), 3, "4200\n")
    assert home.ctl("remaining", "--json", "--default", "4200").returncode == 3
    run = home.ok("run", "start", "--budget", "none")
    assert "has no budget" in clean_error(home.ctl("remaining", "--default", "4200"), 3, "4200\n")
    home.ok("run", "set", "--run", run, "--budget", "17")
    assert home.ok("remaining", "--default", "4200") == "17"


@both_clients
def test_stopped_daemon(home: Home, daemon: Daemon) -> None:
    """There is no answer in time, so the exit code is 75, or the default is printed."""
    run = started(home)
    suspend(daemon.process.pid)
    try:
        assert "within 0.2 s" in clean_error(home.ctl("remaining", "--run", run, own_deadline=True), 75)
        assert "within 0.3 s" in clean_error(home.ctl("check", "--run", run, "--timeout", "0.3"), 75)
        clean_error(home.ctl("remaining", "--run", run, "--default", "1", own_deadline=True), 0, "1\n")
    finally:
        daemon.signal(signal.SIGCONT)


@both_clients
def test_no_run(home: Home, daemon: Daemon) -> None:
    clean_error(home.ctl("remaining"), 3, "0\n")
    clean_error(home.ctl("env"), 3, "unset FLUX_BUDGET_REMAINING\n")
    clean_error(home.ctl("check"), 3)
    clean_error(home.ctl("check", "--require"), 1)
    clean_error(home.ctl("run", "show"), 3)
    clean_error(home.ctl("status", "--run", "x"), 3)
    clean_error(home.ctl("remaining", "--run", "no-such"), 3, "0\n")
    shown = json.loads(home.ctl("remaining", "--json").stdout)
    assert (shown["run"], shown["remaining"], shown["state"]) == (None, 0, "no_run")
    assert home.ok("status") == "no active runs"


@both_clients
def test_no_budget(home: Home, daemon: Daemon) -> None:
    run = home.ok("run", "start", "--budget", "none")
    result = home.ctl("remaining")
    assert (result.returncode, result.stdout) == (3, "0\n")
    assert f"run {run} has no budget" in clean_error(result, 3, "0\n")
    clean_error(home.ctl("env"), 3, "unset FLUX_BUDGET_REMAINING\n")
    assert home.ok("check") == home.ok("check", "--require") == "ok"
    shown = json.loads(home.ctl("remaining", "--json").stdout)
    assert (shown["remaining"], shown["budget"], shown["state"]) == (None, None, "unlimited")


@both_clients
def test_a_budget_until_it_is_exhausted(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """`remaining`, `env` and `check`, from full to exhausted; `check` refuses every time."""
    home.ok("run", "start", "--budget", "100", "--session", "s1")
    row = interstat.insert("s1")
    for spent, left, state in ((0, 100, "ok"), (79, 21, "ok"), (80, 20, "warning"), (99, 1, "warning")):
        interstat.update(row, input_tokens=spent, output_tokens=0)
        assert home.ok("remaining") == str(left)
        assert home.ok("env") == f"export FLUX_BUDGET_REMAINING={left}"
        assert home.ok("check") == "ok"
        assert home.json("remaining")["state"] == state
    for spent in (100, 260):
        interstat.update(row, input_tokens=spent, output_tokens=0)
        assert home.ok("remaining") == "0"
        assert home.ok("env") == "export FLUX_BUDGET_REMAINING=1"
        for _ in range(2):
            result = home.ctl("check")
            assert (result.returncode, result.stderr) == (1, "")
            assert result.stdout == f"budget_exceeded|brainstorm|{spent}/100 billing tokens\n"
    home.ok("run", "set", "--budget", "1000")
    assert home.ok("check") == "ok"


USAGE = [
    [], ["no-such"], ["remaining", "--no-such"], ["remaining", "extra"], ["remaining", "--timeout", "0"],
    ["remaining", "--timeout", "soon"], ["remaining", "--timeout", "nan"], ["remaining", "--default", "x"],
    ["remaining", "--run"], ["remaining", "--run", ""], ["remaining", "--run", "a", "--scope", "b"], ["run"],
    ["run", "start", "--budget", "much"], ["run", "start", "--complexity", "x"], ["run", "attach"], ["run", "set"],
    ["remaining", "--tim", "1"], ["check", "--default", "1"], ["remaining", "--json=1"], ["check", "--json=x"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_bad_usage(home: Home, arguments: list[str]) -> None:
    clean_error(home.ctl(*arguments), 64)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--id", "a b"], ["--budget", "0"], ["--budget=-5"], ["--complexity", "9"], ["--warn-pct", "100"],
        ["--enforcement", "firm"], ["--cost-basis", "x"], ["--phases", "a,a"], ["--phases", "a|b"],
        ["--budget", str(2**63)],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_input(home: Home, daemon: Daemon, arguments: list[str]) -> None:
    clean_error(home.ctl("run", "start", *arguments), 65)
    assert home.json("run", "list", "--all")["runs"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        *([verb] for verb in ("remaining", "env", "check", "ping", "status", "doctor", "version", "run")),
        *(["run", verb] for verb in ("start", "list", "show", "set", "attach", "detach", "finish", "cancel")),
    ],
    ids=" ".join,
)
def test_help(home: Home, arguments: list[str]) -> None:
    result = home.ctl(*arguments, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: fluxbudgetctl")


def test_help_explains_naming_and_exit_codes(home: Home) -> None:
    text = home.ok("--help")
    for word in ("$FLUXBUDGET_RUN", "$CLAVAIN_BEAD_ID", "69 daemon not", "75 no answer"):
        assert word in text


@both_clients
def test_naming_order(home: Home, daemon: Daemon) -> None:
    """First flags, then $FLUXBUDGET_RUN, $CLAVAIN_BEAD_ID, the sessions, and the directory."""
    for number, name in enumerate(("by-flag", "by-env", "by-bead", "by-code", "by-session", "by-dir"), 1):
        started(home, id=name, scope=f"scope-{name}" if name == "by-bead" else None, token_budget=number, session=name)
    environ = {
        "FLUXBUDGET_RUN": "by-env",
        "CLAVAIN_BEAD_ID": "scope-by-bead",
        "CLAUDE_CODE_SESSION_ID": "by-code",
        "CLAUDE_SESSION_ID": "by-session",
    }
    assert home.ok("remaining", "--run", "by-flag", environ=environ) == "1"
    assert home.ok("remaining", "--session", "by-session", environ=environ) == "5"
    for number, name in enumerate(tuple(environ), 2):
        assert home.ok("remaining", environ=environ) == str(number), name
        environ.pop(name)
    environ = {"CLAUDE_CODE_SESSION_ID": "unknown", "CLAVAIN_BEAD_ID": "unknown", "CLAUDE_SESSION_ID": "by-session"}
    assert home.ok("remaining", environ=environ) == "5"
    clean_error(home.ctl("remaining", environ={"FLUXBUDGET_RUN": "unknown"}), 3, "0\n")
    assert "6 active runs" in clean_error(home.ctl("remaining"), 3, "0\n")


@both_clients
def test_directory_names_the_only_active_run(home: Home, daemon: Daemon) -> None:
    below = home.project / "a" / "b"
    below.mkdir(parents=True)
    link = home.root / "link"
    link.symlink_to(below)
    run = home.ok("run", "start", "--budget", "77")
    for place in (home.project, below, link):
        assert home.ok("remaining", cwd=place) == "77"
    clean_error(home.ctl("remaining", cwd=home.root), 3, "0\n")
    sibling = home.root / "project-two"
    sibling.mkdir()
    clean_error(home.ctl("remaining", cwd=sibling), 3, "0\n")
    assert home.ok("remaining", environ={"CLAVAIN_BEAD_ID": "another-sprint"}) == "77"
    home.ok("run", "finish", "--run", run)
    clean_error(home.ctl("remaining"), 3, "0\n")
    scoped = home.ok("run", "start", "--scope", "b1", "--budget", "88")
    assert home.ok("remaining") == "88"
    clean_error(home.ctl("remaining", environ={"CLAVAIN_BEAD_ID": "another-sprint"}), 3, "0\n")
    assert scoped != run


@both_clients
def test_deleted_working_directory(home: Home, daemon: Daemon) -> None:
    gone = home.root / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && exec {shlex.join(CTL)}"
    result = subprocess.run(
        ["sh", "-c", f"{command} remaining"], env=home.environ, capture_output=True, text=True, check=False
    )
    clean_error(result, 3, "0\n")


def test_the_same_run_again(home: Home, daemon: Daemon) -> None:
    first = home.ok("run", "start", "--scope", "b1", "--budget", "500", "--goal", "g")
    assert home.ok("run", "start", "--scope", "b1", "--budget", "500", "--goal", "g") == first
    assert home.ok("run", "start", "--scope", "b1", "--id", first) == first
    clean_error(home.ctl("run", "start", "--scope", "b1", "--budget", "600"), 65)
    clean_error(home.ctl("run", "start", "--scope", "b1", "--id", "another"), 65)
    home.ok("run", "set", "--run", first, "--budget", "600")
    assert home.ok("run", "start", "--scope", "b1", "--budget", "500") == first
    home.ok("run", "finish", "--run", first)
    clean_error(home.ctl("run", "start", "--id", first), 65)
    assert home.ok("run", "start", "--scope", "b1") != first


def test_two_starts_of_one_scope_at_once_are_one_run(home: Home, daemon: Daemon) -> None:
    processes = [
        subprocess.Popen(
            [*CTL, "run", "start", "--scope", "b1"],
            env=home.environ,
            cwd=home.project,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    assert len({process.communicate()[0] for process in processes}) == 1
    assert [process.returncode for process in processes] == [0] * 8
    assert len(home.json("run", "list", "--all")["runs"]) == 1


def test_ending_a_run(home: Home, daemon: Daemon) -> None:
    run = home.ok("run", "start")
    home.ok("run", "finish", "--run", run)
    assert "unchanged" in home.ok("run", "finish", "--run", run)
    clean_error(home.ctl("run", "cancel", "--run", run), 65)
    clean_error(home.ctl("run", "set", "--run", run, "--budget", "5"), 65)
    assert home.ok("run", "list") == "no runs"
    assert run in home.ok("run", "list", "--all")
    clean_error(home.ctl("run", "detach", "--session", "unknown"), 65)


def test_reader_that_goes_away(home: Home, daemon: Daemon) -> None:
    """`| head` ends the client silently."""
    for number in range(60):
        started(home, id=f"run-{number}", goal="g" * 2000)
    command = f"{shlex.join(CTL)} run list | head -1"
    result = subprocess.run(["bash", "-c", command], env=home.environ, capture_output=True, text=True, check=False)
    assert (result.stdout.startswith("RUN"), result.stderr) == (True, "")


@both_clients
@pytest.mark.parametrize("verb", ["remaining", "run list"])
def test_output_that_cannot_be_written(home: Home, daemon: Daemon, verb: str) -> None:
    """A full disk is an error with exit code 70; a closed stdout is not an error."""
    home.ok("run", "start")
    full, closed = shell(home, f"{verb} > /dev/full"), shell(home, f"{verb} >&-")
    assert "the output cannot be written" in clean_error(full, 70)
    assert (closed.returncode, closed.stderr) == (0, "")


@both_clients
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_stderr_that_cannot_be_written_changes_no_exit_code(home: Home, redirection: str) -> None:
    """Exit code 1 always means "refused"."""
    for arguments, code, stdout in (
        ("check", 69, ""),
        ("remaining", 69, ""),
        ("remaining --default 5", 0, "5\n"),
        ("status", 69, ""),
        ("no-such", 64, ""),
    ):
        result = shell(home, f"{arguments} {redirection}")
        assert (result.returncode, result.stdout) == (code, stdout), arguments


@both_clients
def test_check_refuses_even_if_its_output_is_not_read(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    """Its output is a pipe without a reader."""
    home.ok("run", "start", "--budget", "1", "--session", "s1")
    interstat.insert("s1", input_tokens=5, output_tokens=0)
    command = f"set -o pipefail; {shlex.join(CTL)} check | true"
    result = subprocess.run(
        ["bash", "-c", command], env=home.environ, cwd=home.project, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (1, "")


def shell(home: Home, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"exec {shlex.join(CTL)} {command}"],
        env=home.environ,
        cwd=home.project,
        capture_output=True,
        text=True,
        check=False,
    )


def test_terminal_without_utf_8(home: Home, daemon: Daemon) -> None:
    home.ok("run", "start", "--goal", "日本")
    latin = {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    assert "\\u65e5" in home.ok("run", "list", environ=latin)
    assert json.loads(home.ok("run", "show", "--json", environ=latin))["run"]["goal"] == "日本"


@both_clients
def test_directory_whose_name_is_not_utf_8(home: Home, daemon: Daemon) -> None:
    odd = home.root / os.fsdecode(b"\xffdir")
    odd.mkdir()
    run = home.ok("run", "start", "--budget", "7", cwd=odd)
    assert home.ok("remaining", cwd=odd) == "7"
    home.ok("run", "finish", "--run", run)
    home.ok("run", "start", "--budget", "8", "--project", str(odd))
    assert home.ok("remaining", cwd=odd) == "8"


@both_clients
def test_json_of_a_default(home: Home) -> None:
    result = home.ctl("remaining", "--json", "--default", "5")
    shown = json.loads(result.stdout)
    assert (result.returncode, shown["remaining"], shown["state"], shown["stale"]) == (0, 5, "no_answer", True)


def test_more_runs_than_a_frame_holds(home: Home, daemon: Daemon) -> None:
    """Lists are sent in pages, which the user does not see; no run is missing or listed twice."""
    phases = tuple(f"phase-{number}-{'x' * 52}" for number in range(64))
    for number in range(300):
        started(home, id=f"run-{number}", goal="g" * 4000, phases=phases)
    for arguments in (("status",), ("run", "list"), ("run", "list", "--all")):
        names = [line["run"]["id"] for line in home.json(*arguments, "--timeout", "20")["runs"]]
        assert names == [f"run-{number}" for number in reversed(range(300))]


@both_clients
def test_full_backlog_is_retried_until_the_deadline(home: Home) -> None:
    """A daemon that accepts no connections is reported as too slow, not as missing."""
    home.socket.parent.mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as waiting:
        listener.bind(str(home.socket))
        listener.listen(1)
        while True:
            peer = waiting.enter_context(closing(socket.socket(socket.AF_UNIX)))
            peer.setblocking(False)
            try:
                peer.connect(str(home.socket))
            except BlockingIOError:
                break
        clean_error(home.ctl("remaining", "--timeout", "0.3"), 75)


def test_every_error_code_has_a_documented_exit_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "commands.md").read_text()
    for code, _ in codes.ERROR_CODES.values():
        assert f"| {code} |" in text


def test_ping_and_version(home: Home, daemon: Daemon) -> None:
    assert f"pid {daemon.process.pid}" in home.ok("ping")
    assert home.json("ping")["protocol"] == 1
    assert home.ok("version").splitlines()[0] == f"fluxbudgetctl {__version__} (python)"
    shown = home.json("version")
    assert (shown["client"], shown["daemon"]) == (__version__, __version__)
    assert (shown["client_kind"], shown["client_build"]) == ("python", None)


@pytest.mark.parametrize(
    ("said", "shown", "build"),
    [(__version__, "native", None), (f"{__version__} musl", "native, musl", "musl")],
)
def test_version_of_a_native_client(home: Home, daemon: Daemon, said: str, shown: str, build: str | None) -> None:
    """One of an earlier release does not say how it was built."""
    environ = {"FLUXBUDGETCTL_NATIVE": said}
    assert home.ok("version", environ=environ).splitlines()[0] == f"fluxbudgetctl {__version__} ({shown})"
    found = json.loads(home.ctl("version", "--json", environ=environ).stdout)
    assert (found["client"], found["client_kind"], found["client_build"]) == (__version__, "native", build)


def test_doctor(home: Home, interstat: Interstat, daemon: Daemon) -> None:
    assert home.ok("doctor").endswith("no problems found")
    assert home.json("doctor")["ok"] is True
    daemon.kill()
    result = home.ctl("doctor")
    assert result.returncode == 1
    assert "no fluxbudgetd serves" in result.stdout
    home.socket.unlink()
    home.socket.write_text("")
    assert "is not a socket" in home.ctl("doctor").stdout
    home.socket.unlink()
    home.socket.parent.chmod(0o770)
    assert "writable by others" in home.ctl("doctor").stdout
    home.socket.parent.chmod(0o700)


def test_hot_verbs_do_not_import_what_is_heavy(home: Home) -> None:
    """`remaining` imports no argparse, msgspec, json, socket, anyio or rich."""
    code = (
        "import sys; before = set(sys.modules); from fluxbudgetctl.main import main;"
        "code = main(['remaining', '--timeout', '20']);"
        "heavy = {'argparse', 'msgspec', 'json', 'socket', 'anyio', 'rich', 're', 'typing', 'enum'};"
        "print(sorted((heavy & set(sys.modules)) - before), code)"
    )
    with answering(home, replied("250000\n")):
        result = subprocess.run(
            [sys.executable, "-c", code], env=home.environ, capture_output=True, text=True, check=True
        )
    assert result.stdout == "250000\n[] 0\n"


def test_symlinks_in_a_projects_path_are_resolved(home: Home, daemon: Daemon) -> None:
    link = home.root / "link"
    link.symlink_to(home.project)
    run = home.ok("run", "start", "--project", str(link))
    assert home.json("run", "show", "--run", run)["run"]["project_dir"] == str(Path(home.project).resolve())


@both_clients
@pytest.mark.parametrize("length", [10, 9_000])
def test_check_refuses_if_its_reader_has_gone(home: Home, length: int) -> None:
    """The exit code is the answer."""
    reading, writing = os.pipe()
    os.close(reading)
    with answering(home, replied("x" * length + "\n", exit_code=1)):
        result = subprocess.run(
            [*CTL, "check", "--timeout", "20"],
            env=home.environ,
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, b"")


@both_clients
def test_output_beyond_the_file_size_limit(home: Home) -> None:
    """It is reported as an error; by default, a signal would end the program."""
    place = home.root / "output"
    command = ["bash", "-c", f'ulimit -f 0; "$@" >{place}', "-", *CTL]
    for verb in ("check", "hook", "statusline"):
        with answering(home, replied("line\n", exports="export A=1\n")):
            result = subprocess.run(
                [*command, verb, "--timeout", "20"],
                env={**home.environ, "CLAUDE_ENV_FILE": str(home.root / "exports")},
                input=b"{}",
                capture_output=True,
                check=False,
            )
        home.socket.unlink()
        if verb == "hook":
            assert (result.returncode, result.stderr) == (0, b"")
        else:
            assert result.returncode == 70
            assert os.strerror(errno.EFBIG).encode() in result.stderr
        assert place.read_bytes() == b""
