"""Real daemons in a throw-away home, and the client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import FrameDecoder, encode_frame
from harness.orphan import connected_by_orphan

DAEMON = [sys.executable, str(Path(__file__).parent / "watched_daemon.py")]
CTL = [sys.executable, "-m", "fluxbudgetctl"]
#: How long a test waits for a condition, in seconds: far longer than it takes, even on a busy machine.
PATIENCE = 60.0
#: Commands that give up after a second or less if the daemon has not answered by then.
_HURRIED = {
    *("remaining", "env", "check", "ping", "status", "run", "allow", "advance"),
    *("doctor", "triage", "report", "estimates", "calibrate"),
}


def patient(arguments: Sequence[str | bytes]) -> tuple[str | bytes, ...]:
    """Return the command line with a generous `--timeout`, unless it has one."""
    hurried = bool(arguments) and arguments[0] in _HURRIED
    if not hurried or any(os.fsdecode(word).startswith("--timeout") for word in arguments):
        return tuple(arguments)
    return (*arguments, "--timeout", f"{PATIENCE:g}")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the condition's first true value; fail if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"waited {seconds} s for {what}")


@contextmanager
def killed(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Kill the process at the end of the block; `with process` alone would wait forever after a failed test."""
    with process:
        try:
            yield process
        finally:
            process.kill()


class Home:
    """A home directory with everything that the daemon and the client look for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "run" / "fluxbudget" / "fluxbudgetd.sock"
        self.state = root / "state"
        self.interstat = root / "claude" / "interstat" / "metrics.db"
        self.project = root / "project"
        self.project.mkdir(parents=True, exist_ok=True)
        self.interstat.parent.mkdir(parents=True, exist_ok=True)
        self._daemons: list[Daemon] = []

    @property
    def environ(self) -> dict[str, str]:
        """Return an environment without the settings of the user who runs the tests."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "PYTHONPATH") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.root),
            "CLAUDE_CONFIG_DIR": str(self.root / "claude"),
            "FLUXBUDGET_SOCKET": str(self.socket),
            "PYTHONUTF8": "1",
            # So that no notification is shown to the user who runs the tests.
            "XDG_RUNTIME_DIR": str(self.root / "run"),
        }

    def start(self, *arguments: str, wait: bool = True, prefix: tuple[str, ...] = ()) -> "Daemon":
        """Start a daemon; `prefix` is a command that runs it (setpriv, prlimit)."""
        daemon = Daemon(self, arguments, prefix)
        self._daemons.append(daemon)
        if wait:
            daemon.wait_until_ready()
        return daemon

    def ctl(
        self,
        *arguments: str | bytes,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
        own_deadline: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run the client as a process of its own, with a generous `--timeout` unless `own_deadline` is set."""
        return subprocess.run(
            [*CTL, *(arguments if own_deadline else patient(arguments))],
            env={**self.environ, **(environ or {})},
            cwd=cwd or self.project,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    def ok(self, *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run the client, require exit 0, and return its output without the last newline."""
        result = self.ctl(*arguments, environ=environ, cwd=cwd)
        assert result.returncode == 0, (arguments, result)
        return result.stdout.rstrip("\n")

    def json(self, *arguments: str) -> Any:
        """Run the client with --json and return what it prints."""
        return json.loads(self.ok(*arguments, "--json"))

    def ask(self, request: messages.AnyRequest, timeout: float = PATIENCE) -> messages.AnyAnswer | messages.ErrorAnswer:
        """Send a request to the daemon without starting a client."""
        # The session of a hook must not be taken for the test.
        with Wire(self.socket, by_orphan=isinstance(request, messages.Hook)) as wire:
            return wire.ask(request, timeout)

    def spend(self, run: str, timeout: float = PATIENCE) -> messages.Spend:
        """Return a run's spend."""
        answer = self.ask(messages.Remaining(run=run, wait_ms=int(timeout * 1000)), timeout)
        assert isinstance(answer, messages.RemainingAnswer), answer
        return answer.spend

    def spent(self, run: str) -> int:
        """Return what a run has spent, and require that the number is up to date."""
        spend = self.spend(run)
        assert not spend.stale, spend
        return spend.spent

    def spent_once_fresh(self, run: str) -> int:
        """Return what a run has spent, once the number is up to date: answers wait only briefly for other databases."""
        return int(wait_for(lambda: not (spend := self.spend(run)).stale and spend, f"fresh numbers of {run}").spent)

    def details(self, run: str) -> messages.RunShowAnswer:
        """Return everything about a run."""
        answer = self.ask(messages.RunShow(run=run, wait_ms=int(PATIENCE * 1000)))
        assert isinstance(answer, messages.RunShowAnswer), answer
        return answer

    def stop_all(self) -> None:
        """Stop every daemon, and require that none blocked its loop or failed on a request."""
        for daemon in self._daemons:
            daemon.stop()
        for daemon in self._daemons:
            daemon.require_clean_log()


class Wire:
    """A connection that speaks the protocol, for tests that need no client process.

    `by_orphan`: the peer is a process that is inside no session (`connected_by_orphan`).
    """

    def __init__(self, path: Path, *, by_orphan: bool = False) -> None:
        self.socket = connected_by_orphan(path) if by_orphan else _connected(path)
        self.socket.settimeout(PATIENCE)
        self._decoder = FrameDecoder()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()

    def ask(self, request: messages.AnyRequest, timeout: float = PATIENCE) -> messages.AnyAnswer | messages.ErrorAnswer:
        """Send a request and return its answer. The daemon waits generously, unless the request says how long."""
        if request.wait_ms == messages.Ping().wait_ms:
            request = msgspec.structs.replace(request, wait_ms=int(PATIENCE * 1000))
        self.socket.settimeout(timeout)
        self.send(request)
        return messages.decode_answer(self.receive())

    def send(self, *requests: messages.AnyRequest) -> None:
        """Send requests in one piece, without waiting for their answers."""
        self.socket.sendall(b"".join(encode_frame(messages.encode(request)) for request in requests))

    def receive(self) -> bytes:
        """Return the next answer's body; raises EOFError at the end of the stream."""
        while (body := self._decoder.next()) is None:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError("the daemon closed the connection")
            self._decoder.feed(data)
        return body

    @property
    def unfinished(self) -> int:
        """Return how many bytes of an incomplete frame were received."""
        return self._decoder.buffered

    def error(self) -> str:
        """Return the next answer's error code."""
        answer = messages.decode_answer(self.receive())
        assert isinstance(answer, messages.ErrorAnswer), answer
        return answer.error.code


def _connected(path: Path) -> socket.socket:
    connecting = socket.socket(socket.AF_UNIX)
    connecting.settimeout(PATIENCE)
    try:
        connecting.connect(str(path))
    except OSError:
        connecting.close()
        raise
    return connecting


class Daemon:
    """One fluxbudgetd process."""

    def __init__(self, home: Home, arguments: tuple[str, ...], prefix: tuple[str, ...]) -> None:
        self.home = home
        number = len(list(home.root.glob("daemon-*.log")))
        self.log_path = home.root / f"daemon-{number}.log"
        command = [*prefix, *DAEMON, "--state-dir", str(home.state), *arguments]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=home.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log}"
            return '"event": "ready"' in self.log

        wait_for(ready, "the daemon to be ready")

    def kill(self) -> None:
        """Kill it with SIGKILL, so that it cannot clean up."""
        self.process.kill()
        self.process.wait()
        self._close()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Stop it as systemd does; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            code = self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the daemon did not stop:\n{self.log}") from None
        finally:
            self._close()
        return code

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def require_clean_log(self) -> None:
        """Fail if the event loop was blocked or a request failed inside the daemon."""
        for line in self.log.splitlines():
            assert "BlockingError" not in line, line
            assert "Traceback" not in line, self.log
            with contextlib.suppress(json.JSONDecodeError):
                assert json.loads(line).get("event") not in ("request failed", "refresh failed"), line

    def status(self, field: str) -> int:
        """Return a number from /proc/PID/status (VmRSS in kB, Threads, voluntary_ctxt_switches)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return int(value.split()[0])
        raise KeyError(field)


def started(home: Home, *, project: Path | None = None, **fields: Any) -> str:
    """Start a run and return its id. Two runs of one project are a problem for `doctor`; `project_of` avoids that."""
    answer = home.ask(messages.RunStart(project_dir=str(project or home.project), wait_ms=30_000, **fields))
    assert isinstance(answer, messages.RunAnswer), answer
    return answer.run.id


def project_of(home: Home, session: str) -> Path:
    """Return a directory for the run of a session alone, beside the project."""
    directory = home.root / f"project-{session}"
    directory.mkdir(exist_ok=True)
    return directory


__all__ = ["CTL", "PATIENCE", "Daemon", "Home", "Wire", "killed", "project_of", "started", "wait_for"]
