"""fluxbudget as a user service in a jail, observed through systemd."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fluxbudgetctl
from fluxbudgetd.wire import messages
from harness.daemon import Home, wait_for
from harness.jail import hidden, needed

_PLACES = (Path(str(fluxbudgetctl.__file__)).parent, Path(__file__).parents[2])
#: In a wheel the units are in the package.
UNITS = next(place / "systemd" for place in _PLACES if (place / "systemd").is_dir())
SERVICE = "fluxbudgetd.service"
SOCKET = "fluxbudgetd.socket"
#: Long enough for a daemon that starts on a busy machine.
PATIENT = ("--timeout", "60")
_PATIENCE = 60.0


class Account(Home):
    """The home directory of the jail's user, with everything in its default place, and the service."""

    def __init__(self, root: Path, runtime: Path) -> None:
        super().__init__(root)
        self.runtime = runtime
        self.socket = runtime / "fluxbudget" / "fluxbudgetd.sock"
        self.state = root / ".local" / "state" / "fluxbudget"
        self.claude = root / ".claude"
        self.interstat = self.claude / "interstat" / "metrics.db"
        self.units = root / ".config" / "systemd" / "user"
        self._beginning = self._cursor()

    @property
    def environ(self) -> dict[str, str]:
        """Return the user's environment."""
        return dict(os.environ)

    def install(self, *lines: str) -> None:
        """Install the units, with these additional lines in the service's section, and start the socket."""
        self.units.mkdir(parents=True, exist_ok=True)
        shutil.copy(UNITS / SOCKET, self.units)
        program = Path(sys.executable).parent / "fluxbudgetd"
        unit = (UNITS / SERVICE).read_text()
        assert unit.count("\nExecStart=") == 1
        self._write(SERVICE, unit.replace("\nExecStart=/usr/bin/env fluxbudgetd\n", f"\nExecStart={program}\n"))
        path = os.environ.get("PYTHONPATH")
        # The tested code may be in a directory that the sandbox hides.
        shown = [f"BindReadOnlyPaths={place}" for place in hidden(needed(), ("/tmp", "/var/tmp"))]  # noqa: S108
        self.drop_in("code", *shown, *([f"Environment=PYTHONPATH={path}"] if path else []))
        self.drop_in("test", *lines)
        systemctl("start", SOCKET)

    def drop_in(self, name: str, *lines: str) -> None:
        """Add lines to the service's section, for its next start."""
        self._write(f"{SERVICE}.d/{name}.conf", "\n".join(("[Service]", *lines, "")))
        systemctl("daemon-reload")

    def remove(self) -> None:
        """Stop everything, and empty the home and runtime directories."""
        systemctl("stop", SOCKET, check=False)
        systemctl("kill", "--signal=KILL", SERVICE, check=False)  # also one that waits for its restart
        systemctl("stop", SERVICE, check=False)
        systemctl("reset-failed", check=False)
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.rmtree(self.socket.parent, ignore_errors=True)
        systemctl("daemon-reload")

    def show(self, name: str, unit: str = SERVICE) -> str:
        """Return one of a unit's properties."""
        return systemctl("show", "--property", name, "--value", unit)

    @property
    def pid(self) -> int:
        """Return the daemon's pid, or 0."""
        return int(self.show("MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.show("NRestarts"))

    def journal(self, **fields: str) -> list[dict[str, Any]]:
        """Return the journal entries with these fields, from and about the service, since the test began."""
        # (With a filter, journalctl would skip the first entry after the cursor.)
        lines = _journalctl("--output=json", f"--after-cursor={self._beginning}").splitlines()
        return [
            entry
            for entry in map(json.loads, lines)
            if SERVICE in (entry.get("_SYSTEMD_USER_UNIT"), entry.get("USER_UNIT")) and fields.items() <= entry.items()
        ]

    def logged_messages(self) -> list[str]:
        """Return the daemon's own messages in the journal, not its manager's."""
        return [str(entry["MESSAGE"]) for entry in self.journal(SYSLOG_IDENTIFIER="fluxbudgetd")]

    def wait_until_logged(self, text: str) -> None:
        wait_for(lambda: any(text in line for line in self.logged_messages()), f"{text!r} in the journal")

    def ping(self) -> messages.PingAnswer:
        """Ping the daemon, which may have to start first; return the answer."""
        answer = self.ask(messages.Ping(), _PATIENCE)
        assert isinstance(answer, messages.PingAnswer), answer
        return answer

    def configure(self, text: str) -> None:
        """Write config.toml atomically."""
        file = self.root / ".config" / "fluxbudget" / "config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file)

    def require_clean_journal(self) -> None:
        """Fail if a request failed inside the daemon, or if the manager complained about the units."""
        for entry in self.journal():
            line = str(entry["MESSAGE"])
            assert "Traceback" not in line, line
            assert not line.startswith(("request failed", "refresh failed")), line
            assert "ignoring" not in line, line

    def _write(self, name: str, text: str) -> None:
        file = self.units / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def _cursor(self) -> str:
        last = json.loads(_journalctl("--lines=1", "--output=json"))
        return str(last["__CURSOR"])


@contextmanager
def account() -> Iterator[Account]:
    """Provide the jail's user with a clean home directory for one test."""
    made = Account(Path(os.environ["HOME"]), Path(os.environ["XDG_RUNTIME_DIR"]))
    try:
        yield made
        made.require_clean_journal()
    finally:
        made.remove()


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run `systemctl --user`; return its output without the last newline."""
    return subprocess.run(
        ["systemctl", "--user", "--quiet", *arguments],
        stdout=subprocess.PIPE,
        stderr=None if check else subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=check,
    ).stdout.rstrip("\n")


def _journalctl(*arguments: str) -> str:
    return subprocess.run(
        ["journalctl", "--quiet", "--no-pager", *arguments], stdout=subprocess.PIPE, text=True, timeout=60, check=True
    ).stdout
