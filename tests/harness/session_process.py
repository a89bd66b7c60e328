"""A process that stands in for Claude Code: it starts hooks and commands as its children, as a session does."""

import json
import os
import shlex
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

from harness.daemon import CTL, Home, patient

_SCRIPT = """
import json, subprocess, sys
for line in sys.stdin:
    asked = json.loads(line)
    done = subprocess.run(asked["argv"], input=asked["stdin"], env=asked["env"], cwd=asked["cwd"], text=True,
                          capture_output=True)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
"""


class SessionProcess:
    """A session's process. Its name, as `/proc` has it, is `claude`."""

    def __init__(self, home: Home, session: str) -> None:
        self.home = home
        self.session = session
        program = home.root / "bin" / "claude"
        program.parent.mkdir(exist_ok=True)
        if not program.is_symlink():
            program.symlink_to(os.path.realpath(sys.executable))
        self.argv = [str(program), "-I", "-S", "-c", _SCRIPT]
        self._process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=home.environ, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def environ(self) -> dict[str, str]:
        return {**self.home.environ, "CLAUDE_CODE_SESSION_ID": self.session}

    def end(self) -> None:
        """End the process, and wait until it has ended."""
        self._process.kill()
        self._process.communicate()

    def run(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as a child of the session, and return what it has printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(self.line(*argv, stdin=stdin))
        self._process.stdin.flush()
        code, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(argv, code, out, err)

    def line(self, *argv: str, stdin: str = "") -> str:
        """Return the line of stdin that has the process run a program."""
        asked = {"argv": argv, "stdin": stdin, "env": self.environ, "cwd": str(self.home.project)}
        return json.dumps(asked) + "\n"

    def bash(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script as the tool Bash does."""
        return self.run("bash", "-c", script)

    def hook(self, event: str, **fields: Any) -> dict[str, Any]:
        """Call the session's hook, through a shell, and return its output."""
        given = {"hook_event_name": event, "session_id": self.session, "cwd": str(self.home.project), **fields}
        done = self.run("sh", "-c", f"{command('hook', '--timeout', '60')}; true", stdin=json.dumps(given))
        assert (done.returncode, done.stderr) == (0, ""), done
        return dict(json.loads(done.stdout)) if done.stdout else {}


def command(*words: str) -> str:
    """Return a command line of the client for a shell."""
    return shlex.join([*CTL, *(str(word) for word in patient(words))])


__all__ = ["SessionProcess", "command"]
