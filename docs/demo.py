"""fluxbudget's main job, as two stories: a throw-away home, the real daemon and client, and what others write.

Run it with `make demo`. Nothing outside a temporary directory is touched. Ctrl-C ends it at its next step, and leaves
neither the daemon nor the directory.
"""

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

SCHEMA = """
CREATE TABLE agent_runs(id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, session_id TEXT NOT NULL,
  agent_name TEXT NOT NULL, invocation_id TEXT, subagent_type TEXT, description TEXT, wall_clock_ms INTEGER,
  result_length INTEGER, input_tokens INTEGER, output_tokens INTEGER, cache_read_tokens INTEGER,
  cache_creation_tokens INTEGER, total_tokens INTEGER, model TEXT, parsed_at TEXT,
  bead_id TEXT DEFAULT '', phase TEXT DEFAULT '');
CREATE INDEX idx_session ON agent_runs(session_id);
CREATE INDEX idx_bead ON agent_runs(bead_id);
PRAGMA user_version = 2;
"""
BEAD = "demo-42"
SESSION = "5b1c7d9e-demo"
RUNNING = "c84e02aa-demo"
HOOKED = "0e9a51f3-demo"
CLAIMED = "7d20b6aa-demo"
IC_RUN = "k3x9m2qa"
AGENTS = """{"agents": [
  {"name": "fd-correctness", "score": 5, "stage": 1},
  {"name": "fd-safety", "score": 3, "stage": 2},
  {"name": "fd-performance", "score": 4, "stage": 2},
  {"name": "fd-people", "score": 3.5, "stage": 2},
  {"name": "best-practices-researcher", "score": 2, "stage": 2}]}
"""


class Interruptible:
    """Runs commands until a signal asks for the end.

    A signal ends the running command and is remembered for `check`. It raises no exception, which could come between
    two statements that belong together: `mkdtemp`, and the `try` that removes the directory.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._command: subprocess.Popen[str] | None = None

    def arm(self) -> None:
        """Handle the signals that ask for the end, including a SIGINT that `make demo` has held back until now."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        if self._command is not None:
            self._command.terminate()

    def check(self) -> None:
        """If a signal has arrived, exit with the code that a shell reports for it."""
        if self._signal:
            raise SystemExit(128 + self._signal)

    @contextmanager
    def running(self, command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
        """Start a command that ends with this block at the latest; check for signals before and after it."""
        self.check()
        # In a session of its own: the terminal's Ctrl-C is for this process alone.
        with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
            self._command = process
            try:
                if self._signal:
                    process.terminate()
                yield process
            finally:
                self._command = None
                process.terminate()
        self.check()

    def run(self, command: Sequence[str], given: str | None = None, **options: Any) -> int:
        """Run a command to its end; return its exit code."""
        stdin = None if given is None else subprocess.PIPE
        with self.running(command, stdin=stdin, **options) as process:
            process.communicate(given)
        return process.returncode


class Story:
    """Says what happens next, and makes it happen."""

    def __init__(self, home: Path, interruptible: Interruptible) -> None:
        self._commands = interruptible
        self.database = home / ".claude" / "interstat" / "metrics.db"
        self.project = home / "project"
        self.project.mkdir(parents=True)
        self.environ = {
            **{
                name: os.environ[name]
                for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TERM", "COLUMNS")
                if name in os.environ
            },
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),  # short, because the path of a socket must be
            "PYTHONUTF8": "1",
            **({} if sys.stdout.isatty() else {"NO_COLOR": "1"}),
        }
        (home / "run").mkdir(mode=0o700)

    def tell(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)

    def ctl(self, *arguments: str, expected: int = 0, given: str | None = None) -> None:
        """Show a command of the client and run it; its output goes to the same terminal. `given` is its input."""
        where = "" if given is None else f" < {'agents' if given is AGENTS else 'hook'}.json"
        print(f"  $ fluxbudgetctl {shlex.join(arguments)}{where}", flush=True)
        command = [sys.executable, "-m", "fluxbudgetctl", *arguments]
        code = self._commands.run(command, given, env=self.environ, cwd=self.project)
        if code != expected:
            raise SystemExit(f"the demo failed: exit {code} instead of {expected}")
        if expected:
            print(f"  (exit code {expected})", flush=True)

    def wait_for(self, left: str) -> None:
        """Wait until this much is left. On a busy machine, an answer may not include the latest write of `ic` yet."""
        command = [sys.executable, "-m", "fluxbudgetctl", "remaining"]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self._commands.running(
                command, env=self.environ, cwd=self.project, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as process:
                if process.communicate()[0] == f"{left}\n":
                    return
            time.sleep(0.05)

    def hook(self, event: str, verb: str = "hook", **fields: object) -> None:
        """Call a hook (or the status line) as Claude Code does."""
        common = {"session_id": HOOKED, "cwd": str(self.project), "hook_event_name": event}
        self.ctl(verb, given=json.dumps({**common, **fields}))

    @contextmanager
    def watching(self) -> Iterator[Iterator[str]]:
        """Start `watch`, as if in another terminal; give the lines that it prints."""
        command = [sys.executable, "-m", "fluxbudgetctl", "watch", "--since", "0", "--run", "demo"]
        with self._commands.running(command, env=self.environ, stdout=subprocess.PIPE) as watch:
            yield iter(watch.stdout or ())

    def interstat(self, *arguments: str) -> None:
        """Write to the database as interstat does: in a separate process that does not know fluxbudget."""
        command = [sys.executable, __file__, "--interstat", str(self.database), *arguments]
        if code := self._commands.run(command, env=self.environ):
            raise SystemExit(f"the demo failed: its interstat ended with exit {code}")

    def open_project(self, name: str) -> None:
        """Go on in another project, with `ic` on PATH."""
        home = self.project.parent
        self.project = home / name
        self.project.mkdir()
        program = home / "bin" / "ic"
        program.parent.mkdir()
        stand_in = Path(__file__).with_name("demo_ic.py")
        program.write_text(f'#!/bin/sh\nexec {shlex.join((sys.executable, str(stand_in)))} "$@"\n')
        program.chmod(0o755)
        self.environ["PATH"] = f"{program.parent}:{self.environ.get('PATH', '/usr/bin:/bin')}"

    def ic(self, *arguments: str) -> None:
        """Show a command of intercore and run it: a separate program that does not know fluxbudget."""
        print(f"  $ ic {shlex.join(arguments)}", flush=True)
        if code := self._commands.run(["ic", *arguments], env=self.environ, cwd=self.project):
            raise SystemExit(f"the demo failed: its ic ended with exit {code}")

    def transcript(self, message: str, given: int, made: int, agent: str | None = None, session: str = RUNNING) -> None:
        """Append a line to a running session's transcript, as Claude Code does."""
        own = self.database.parents[1] / "projects" / "-demo" / f"{session}.jsonl"
        path = own if agent is None else own.with_suffix("") / "subagents" / "agent-7f3a.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if agent is not None:
            path.with_name("agent-7f3a.meta.json").write_text(json.dumps({"agentType": f"interflux:{agent}"}))
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        usage = {"input_tokens": given, "output_tokens": made, "cache_read_input_tokens": 40_000}
        line = {
            "type": "assistant",
            "sessionId": session,
            "isSidechain": agent is not None,
            "requestId": f"req_{message}",
            "timestamp": now,
            "message": {"id": message, "model": "claude-opus-4-6", "usage": usage},
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run the daemon, once it answers and until the end of this block."""
        log = self.project.parent / "daemon.log"
        command = [sys.executable, "-m", "fluxbudgetd"]
        with log.open("wb") as stderr:
            daemon = subprocess.Popen(command, env=self.environ, stderr=stderr, start_new_session=True)
        try:
            ping = [sys.executable, "-m", "fluxbudgetctl", "ping"]
            deadline = time.monotonic() + 60
            while self._commands.run(ping, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the daemon did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield
        finally:
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            finally:
                daemon.kill()


def tell_story(story: Story) -> None:
    """Tell the story from an empty home to an exhausted budget, and on to a review."""
    story.interstat("init")
    story.tell("fluxbudgetd starts. It follows interstat's database and answers on a Unix socket.")
    with story.daemon():
        story.tell("A sprint begins: one run for the bead demo-42, with a budget of 250 000 tokens.")
        story.ctl(
            "run", "start", "--id", "demo", "--scope", BEAD, "--budget", "250000", "--session", SESSION,
            "--goal", "write the parser",
        )  # fmt: skip
        story.ctl("remaining")

        story.tell("A review agent ends. interstat's hook writes its row, but its tokens are not counted yet.")
        story.interstat("hook", "interflux:fd-safety", "planned")
        story.ctl("remaining")

        story.tell("interstat's parser fills in the row. The very next answer includes it.")
        story.interstat("parser", "interflux:fd-safety", "30000", "8500")
        story.ctl("remaining")

        story.tell("Three more agents end, and so does the main session, whose row appears only now.")
        for agent, phase in (
            ("fd-quality", "planned"),
            ("fd-architecture", "planned"),
            ("fd-performance", "executing"),
        ):
            story.interstat("hook", agent, phase)
        for agent, given, made in (("fd-quality", 42_000, 6_000), ("fd-architecture", 51_000, 9_000)):
            story.interstat("parser", agent, str(given), str(made))
        story.interstat("session", "38000", "11500")
        story.ctl("status")
        story.ctl("check")

        story.tell("A second parse finds that fd-quality used less. Numbers may also go down.")
        story.interstat("parser", "fd-quality", "30000", "6000")
        story.ctl("remaining")

        story.tell("The last agent turns out to be expensive.")
        story.interstat("parser", "fd-performance", "61000", "19000")
        story.ctl("status")
        story.tell("May the sprint go on? No, however often it asks.")
        story.ctl("check", expected=1)
        story.ctl("check", expected=1)
        story.tell("flux-drive treats 0 as 'no limit', so an exhausted budget is exported as 1.")
        story.ctl("env")

        story.tell("Where did the tokens go?")
        story.ctl("run", "show")
        story.tell("The work is worth more, so the budget is raised.")
        story.ctl("run", "set", "--budget", "400000")
        story.ctl("check")
        story.ctl("remaining")

        tell_of_a_review(story)
        tell_of_a_running_session(story)
        tell_of_warnings(story)
        tell_of_another_programs_sprint(story)
    story.tell("The daemon has stopped. Everything it knows is in its ledger. That was fluxbudget.")


def tell_of_a_review(story: Story) -> None:
    """Go on with the next phase, and a review whose agents are cut to what is left of the budget."""
    story.tell("The run moves on. A caller that expects the old phase is refused.")
    story.ctl("advance", "--from", "brainstorm", "--to", "plan-reviewed")
    story.ctl("advance", "--from", "brainstorm", expected=1)

    story.tell(
        "A review: which agents may be launched? The input type allows 150 000 tokens; the sprint has less left."
    )
    story.ctl("triage", "--input-type", "plan", "--table", "--session", SESSION, given=AGENTS)
    story.tell("Two of the launched agents have ended. What is not measured yet is pending, never 0.")
    for agent, given, made in (("fd-safety", 33_000, 4_000), ("fd-correctness", 47_000, 5_500)):
        story.interstat("hook", f"interflux:{agent}", "plan-reviewed")
        story.interstat("parser", f"interflux:{agent}", str(given), str(made))
    story.ctl("report", "--run", "demo", "--markdown")


def tell_of_a_running_session(story: Story) -> None:
    """Let a session run: its tokens count with each response, long before interstat has them."""
    story.tell("Another session begins. interstat gets its numbers when it ends; its transcript has them now.")
    story.ctl("run", "attach", "--run", "demo", "--session", RUNNING)
    story.ctl("remaining")
    story.tell("Claude answers. A response is written on several lines, each with the usage so far. It counts once.")
    for made in (40, 1_200):
        story.transcript("msg_1", 9_000, made)
        story.ctl("remaining")
    story.tell("The session starts a sub-agent, which has its own transcript.")
    story.transcript("msg_2", 4_000, 800, agent="fd-quality")
    story.ctl("remaining")
    story.tell("The session is still running.")


def tell_of_warnings(story: Story) -> None:
    """Call Claude Code's hooks, and show the events of the whole story."""
    story.tell("With the hooks installed, Claude Code asks by itself. A session begins and joins its run:")
    story.hook("SessionStart", source="startup")
    story.tell("Its first prompt brings a warning, once. (The desktop and `watch` had it at once.)")
    story.hook("UserPromptSubmit", prompt="go on")
    story.hook("UserPromptSubmit", prompt="and on")
    story.tell("The session's status line:")
    story.hook("", "statusline")
    story.tell("With hard enforcement, a sub-agent that does not fit is denied.")
    story.ctl("run", "set", "--enforcement", "hard")
    story.hook("PreToolUse", tool_name="Agent", tool_input={"subagent_type": "fd-architecture"})
    story.tell("In another terminal, `fluxbudgetctl watch --since 0 --run demo` has printed, among others:")
    with story.watching() as lines:
        for line in lines:
            event = json.loads(line)
            if event["kind"].startswith(("budget.", "phase.")):
                print(f"  {json.dumps({name: event[name] for name in ('seq', 'kind')})}")
            if event["data"].get("enforcement") == "hard":
                break


def tell_of_another_programs_sprint(story: Story) -> None:
    """Tell the second story: an intercore sprint is adopted, advanced and refused."""
    story.tell("The second story. Another project has its sprints in intercore, which knows nothing about fluxbudget.")
    story.open_project("clavain-project")
    story.ic("init")
    story.ic("run", "create", "--goal=port the lexer", "--scope-id=demo-77", "--token-budget=60000")
    story.tell("No `run start` is needed: a question in that directory finds the sprint and its budget.")
    story.wait_for("60000")
    story.ctl("remaining")
    story.ctl("run", "show")
    story.tell("A session claims the sprint, as Clavain's sessions do. Its tokens count.")
    story.ic("run", "agent", "add", IC_RUN, "--type=session", f"--name={CLAIMED}")
    story.transcript("msg_7", 21_000, 3_000, session=CLAIMED)
    story.wait_for("36000")
    story.ctl("remaining")
    story.tell("May it move on? The daemon checks the budget, and `ic` moves the run, so its phase has one owner.")
    story.ctl("advance", "--from", "brainstorm")
    story.tell("intercore's own tools show what was spent. (Without fluxbudget, they always show 0.)")
    story.ctl("sync")
    story.ic("run", "tokens", IC_RUN)
    story.tell("The session goes on, beyond the budget. The sprint is refused, however often it asks.")
    story.transcript("msg_8", 34_000, 5_500, session=CLAIMED)
    for _ in range(2):
        story.ctl("advance", "--from", "brainstorm-reviewed", expected=1)


def write_as_interstat(path: str, what: str, arguments: Sequence[str]) -> None:
    """Write what interstat's hook or parser writes, in one commit."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA busy_timeout=5000")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if what == "init":
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(SCHEMA)
    elif what == "hook":
        agent, phase = arguments
        connection.execute(
            "INSERT INTO agent_runs(timestamp, session_id, agent_name, subagent_type, bead_id, phase, model) "
            "VALUES (?,?,?,?,?,?,'claude-opus-4-6')",
            (now, SESSION, agent, agent, BEAD, phase),
        )
    elif what == "parser":
        agent, given, made = arguments
        connection.execute(
            "UPDATE agent_runs SET input_tokens=?, output_tokens=?, cache_read_tokens=?, total_tokens=?, parsed_at=? "
            "WHERE id=(SELECT max(id) FROM agent_runs WHERE agent_name=?)",
            (int(given), int(made), int(given) * 9, int(given) * 10 + int(made), now, agent),
        )
    elif what == "session":
        given, made = arguments
        connection.execute(
            "INSERT INTO agent_runs(timestamp, session_id, agent_name, model, input_tokens, output_tokens, parsed_at) "
            "VALUES (?,?,'main-session','claude-opus-4-6',?,?,?)",
            (now, SESSION, int(given), int(made), now),
        )
    connection.close()


def main() -> None:
    """Tell the story, or with --interstat make one commit of it."""
    if sys.argv[1:2] == ["--interstat"]:
        _, _, path, what, *arguments = sys.argv
        write_as_interstat(path, what, arguments)
        return
    interruptible = Interruptible()
    interruptible.arm()
    home = Path(tempfile.mkdtemp(prefix="fluxbudget-"))
    try:
        tell_story(Story(home, interruptible))
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
