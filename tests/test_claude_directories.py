"""Claude Code's directories, with a real daemon: how they are named, learned and watched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.daemon import CTL, Daemon, Home, wait_for
from harness.hooks import Claude
from harness.privilege import needs_root
from harness.transcripts import Transcript

_UNKNOWN_UID = 4_000_000


def write(home: Home, directory: str, session: str, message: str, size: int) -> Transcript:
    """Write a response to a session's transcript in a Claude directory of this home."""
    transcript = Transcript(home.root / directory, session)
    transcript.response(message, tokens=(size, 0, 0, 0))
    return transcript


def learn(home: Home, directory: str, session: str, event: str = "SessionStart") -> None:
    """Have a session's hook name its transcript, which does not exist yet."""
    (home.root / directory).mkdir()
    claude = Claude(home, session)
    claude.transcript = Transcript(home.root / directory, session).path
    claude.call(event, source="startup")


def test_directory_that_a_hook_names_is_searched_for_every_session(home: Home, daemon: Daemon) -> None:
    """This holds even after a crash, and although the hook's session had no run."""
    learn(home, "work", "s1")
    daemon.kill()
    home.start()
    home.ok("run", "start", "--id", "r", "--session", "s2")
    home.ok("run", "attach", "--run", "r", "--session", "s1")
    write(home, "work", "s1", "m1", 1)
    write(home, "work", "s2", "m2", 20)
    write(home, "claude", "s2", "m3", 300)
    assert home.spent("r") == 321


def test_later_hook_teaches_a_directory(home: Home, daemon: Daemon) -> None:
    """An older daemon may have attached the session, and its hook may have failed to name the transcript."""
    home.ok("run", "start", "--id", "r", "--session", "s1")
    learn(home, "work", "s1", "UserPromptSubmit")
    write(home, "work", "s1", "m1", 1)
    assert home.spent("r") == 1


@pytest.mark.parametrize("how", ["option", "configuration", "variable"])
def test_directories_may_be_named(home: Home, how: str) -> None:
    config = home.root / "config.toml"
    config.write_text('claude_dirs = ["~/a", "~/b"]\n' if how == "configuration" else "")
    options = {"option": ["--claude-dir", "~/a", f"--claude-dir={home.root}/b"]}.get(how, [])
    prefix = ("env", "CLAUDE_CONFIG_DIR=~/a,~/b") if how == "variable" else ()
    home.start("--config", str(config), *options, prefix=prefix)
    home.ok("run", "start", "--id", "r", "--session", "s1")
    write(home, "a", "s1", "m1", 1)
    write(home, "b", "s1", "m2", 20)
    write(home, "claude", "s1", "m3", 300)
    assert home.spent("r") == 21


def test_changed_configuration_needs_no_restart(home: Home) -> None:
    config = home.root / "config.toml"
    config.write_text("")
    home.start("--config", str(config))
    home.ok("run", "start", "--id", "r", "--session", "s1")
    write(home, "claude", "s1", "m1", 1)
    write(home, "a", "s1", "m2", 20)
    assert home.spent("r") == 1
    config.write_text(f'claude_dirs = ["{home.root}/a"]\n')
    # What was read from a directory that is no longer configured still counts.
    wait_for(lambda: home.spent("r") == 21, "the other directory to be searched")


def test_learned_directory_is_watched(home: Home, daemon: Daemon) -> None:
    """Its usage passes thresholds although no request asks."""
    home.ok("run", "start", "--id", "r", "--budget", "1000")
    learn(home, "work", "s1")
    write(home, "work", "s1", "m1", 900)
    events = [sys.executable, "-c", _EVENTS, str(home.state / "ledger.db")]
    wait_for(
        lambda: "budget.warning" in subprocess.run(events, capture_output=True, text=True, check=True).stdout,
        "the warning",
    )


_EVENTS = """
import sqlite3, sys
print(sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True).execute("SELECT kind FROM events").fetchall())
"""


def test_session_whose_transcript_is_refused_is_attached(home: Home, daemon: Daemon) -> None:
    """The source says what is not followed."""
    home.ok("run", "start", "--id", "r", "--budget", "1000")
    claude = Claude(home)
    claude.transcript.parent.mkdir(parents=True)
    claude.transcript.symlink_to("/dev/zero")
    assert "of 1 000" in claude.call("SessionStart", source="startup").context
    answer = home.ask(messages.Doctor(wait_ms=30_000))
    assert isinstance(answer, messages.DoctorAnswer)
    notes = [note for source in answer.sources for note in source.notes]
    assert notes == [f"{claude.transcript}: leads to /dev/zero, which is not a regular file"]


def test_doctor_says_which_directory_is_missing_and_what_is_not_followed(home: Home) -> None:
    """A missing default directory is not reported."""
    projects = home.root / "claude" / "projects"
    projects.mkdir()
    (projects / "-p").symlink_to("nothing")
    daemon = home.start("--claude-dir", f"{home.root}/claude", "--claude-dir", f"{home.root}/missing")
    missing = f"Claude directory {home.root}/missing: No such file or directory"
    broken = f"not followed: {projects}/-p: broken symbolic link"
    assert [what for what in findings(home) if str(home.root) in what] == [missing, broken]
    daemon.kill()
    (projects / "-p").unlink()
    home.start(prefix=("env", "--unset=CLAUDE_CONFIG_DIR"))
    assert [what for what in findings(home) if "laude" in what] == []


def findings(home: Home) -> list[str]:
    answer = home.ask(messages.Doctor(wait_ms=30_000))
    assert isinstance(answer, messages.DoctorAnswer)
    return [finding.what for finding in answer.findings]


@needs_root("become a user without an entry in the password database")
def test_daemon_and_client_without_a_home_say_so(home: Home) -> None:
    """A hook is silent, as after any other failure."""
    environ = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    become = ("setpriv", f"--reuid={_UNKNOWN_UID}", f"--regid={_UNKNOWN_UID}", "--clear-groups")
    says = "no home directory: HOME is not set, and the password database has no entry for uid"
    for command, code in (
        ([sys.executable, "-m", "fluxbudgetd"], 78),
        ([sys.executable, "-m", "fluxbudgetd", "--check-config"], 78),
        ([*CTL, "ping"], 78),
        ([*CTL, "status"], 78),
        ([*CTL, "hook"], 0),
    ):
        ended = subprocess.run(
            [*become, *command],
            env=environ,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (code, ""), ended
        assert ended.stderr == "" if code == 0 else says in ended.stderr
        assert "Traceback" not in ended.stderr


def test_unknown_user_in_the_configuration_is_a_clear_error(home: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('claude_dirs = ["~no-such-user/x"]\n')
    ended = subprocess.run(
        [sys.executable, "-m", "fluxbudgetd", "--check-config", "--config", str(config)],
        env=home.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78
    assert f"{config}: claude_dirs: ~no-such-user/x: there is no user no-such-user" in ended.stderr
