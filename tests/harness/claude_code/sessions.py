"""Sessions of the real Claude Code in a throw-away home."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness.claude_code.api import MessagesApi
from harness.daemon import PATIENCE, Home, killed
from harness.terminal import InTerminal

_PROGRAMS = Path(sys.executable).parent
_OFFLINE = str(Path(__file__).with_name("offline.py"))
#: Starts a program in a network namespace that has nothing but a loopback.
_NAMESPACE = ("unshare", "--map-root-user", "--net")
#: What precedes the line that is being typed. (Submitted lines have an ordinary space.)
_PROMPT = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}\N{NO-BREAK SPACE}"


class Session:
    """A session that has ended."""

    def __init__(self, code: int, output: str, errors: str) -> None:
        self.code = code
        self.events: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
        self.errors = errors

    @property
    def id(self) -> str:
        return str(next(event["session_id"] for event in self.events if event.get("subtype") == "init"))

    @property
    def ending(self) -> str | None:
        """Return how the last turn ended: `completed`, `hook_stopped`, or None if its prompt was blocked."""
        results = [event for event in self.events if event["type"] == "result"]
        return results[-1].get("terminal_reason")

    @property
    def shown(self) -> str:
        """Return what Claude Code tells the person beside the conversation."""
        notes = [event for event in self.events if event.get("subtype") == "informational"]
        return "\n".join(note["content"] for note in notes)

    @property
    def refusals(self) -> list[str]:
        """Return the errors that the main conversation's tool calls came back with."""
        messages = [event["message"] for event in self.events if event["type"] == "user"]
        blocks = [block for message in messages if isinstance(message["content"], list) for block in message["content"]]
        return [json.dumps(block["content"]) for block in blocks if block.get("is_error")]


class ClaudeCode:
    """The program, with fluxbudget's hooks in its settings."""

    def __init__(self, program: Path, home: Home, api: MessagesApi) -> None:
        self.program = program
        self.home = home
        self.api = api
        self.directory = home.root / "claude"
        temporary = home.root / "tmp"
        temporary.mkdir()
        self.environ = {
            "HOME": str(home.root),
            "PATH": f"{_PROGRAMS}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TMPDIR": str(temporary),
            "CLAUDE_CONFIG_DIR": str(self.directory),
            "ANTHROPIC_API_KEY": "no-key",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_AUTOUPDATER": "1",
            "FLUXBUDGET_SOCKET": str(home.socket),
            "XDG_RUNTIME_DIR": str(home.root / "run"),
        }
        printed = subprocess.run(
            [_PROGRAMS / "fluxbudgetctl", "hook", "--print-settings"],
            env=self.environ,
            capture_output=True,
            check=True,
        )
        (self.directory / "settings.json").write_bytes(printed.stdout)

    @property
    def offline(self) -> list[str]:
        """Return the command that runs the program without a network. Its arguments follow."""
        launcher = [*_namespace(), sys.executable, "-IS", _OFFLINE, str(self.api.place)]
        return [*launcher, str(self.program), "--allowedTools", "Bash,Agent,Workflow,SendMessage"]

    def run(self, prompt: str, *flags: str, meanwhile: Callable[[], object] = lambda: None) -> Session:
        """Run a session in print mode to its end. Until then, call `meanwhile` again and again."""
        how = ("--output-format", "stream-json", "--verbose", "--include-hook-events", *flags)
        output, errors = self.home.root / "claude.out", self.home.root / "claude.err"
        with output.open("wb") as stdout, errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*self.offline, *how, "--print", prompt],
                cwd=self.home.project,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        deadline = time.monotonic() + 4 * PATIENCE
        with killed(process):
            while process.poll() is None:
                assert time.monotonic() < deadline, f"claude did not end:\n{output.read_text()}"
                meanwhile()
                time.sleep(0.02)
        return Session(process.returncode, output.read_text(), errors.read_text())

    def in_terminal(self, *flags: str) -> InTerminal:
        """Start an interactive session, past the questions that a new user is asked."""
        settings = {
            "hasCompletedOnboarding": True,
            "customApiKeyResponses": {"approved": [self.environ["ANTHROPIC_API_KEY"]], "rejected": []},
            "projects": {str(self.home.project): {"hasTrustDialogAccepted": True}},
        }
        (self.directory / ".claude.json").write_text(json.dumps(settings))
        return InTerminal(self.home, program=[*self.offline, *flags], environ=self.environ, size=(120, 60))


@cache
def _namespace() -> tuple[str, ...]:
    """Return the command prefix for a network namespace, which containers may forbid."""
    tried = subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False)
    return _NAMESPACE if tried.returncode == 0 else ()


def enter(terminal: InTerminal, line: str) -> None:
    """Type a line once there is a prompt, and submit it once it is shown."""
    terminal.wait_for(_PROMPT)
    terminal.press(line)
    terminal.wait_for(_PROMPT + line)
    terminal.press("\r")


def leave(terminal: InTerminal) -> None:
    """End the session."""
    enter(terminal, "/exit")
    assert terminal.process.wait() == 0


__all__ = ["ClaudeCode", "Session", "enter", "leave"]
