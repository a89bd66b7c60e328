"""A private session bus and notification servers on it, all real processes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.daemon import wait_for

_SERVER = str(Path(__file__).parent / "notification_server.py")
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class NotificationServer:
    """A process that owns org.freedesktop.Notifications. `shown` returns the notifications it has received."""

    def __init__(self, address: str, output: Path, options: tuple[str, ...]) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, _SERVER, address, *options], stdout=file)
        wait_for(self._is_ready, "the notification server to have its name")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, "the notification server ended"
        return self._output.read_text().startswith("ready\n")

    @property
    def shown(self) -> list[dict[str, Any]]:
        """Return every notification so far: id, replaces_id, app_name, summary, body, urgency and more."""
        lines = self._output.read_text().splitlines(keepends=True)[1:]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class PrivateBus:
    """A dbus-daemon with its socket in a directory. It activates no services."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        self._directory = directory
        self._config = directory / "bus.conf"
        self._config.write_text(_CONFIG.format(socket=self.socket))
        self._servers: list[NotificationServer] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again, and wait until it listens."""
        command = ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--print-address"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        with self._process.stdout as output:
            assert output.readline().startswith(b"unix:path="), "the bus does not start"

    def serve(self, *options: str) -> NotificationServer:
        """Start a notification server with options of notification_server.py."""
        output = self._directory / f"notifications-{len(self._servers)}"
        server = NotificationServer(self.address, output, options)
        self._servers.append(server)
        return server

    def stop(self) -> None:
        """Kill it and its notification servers, and remove its socket."""
        for server in self._servers:
            server.stop()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.socket.unlink(missing_ok=True)


@contextmanager
def private_bus(directory: Path) -> Iterator[PrivateBus]:
    """Run a bus; skip the test if dbus-daemon is not installed."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("dbus-daemon is not installed (Debian: apt-get install dbus-daemon)")
    bus = PrivateBus(directory)
    try:
        bus.start()
        yield bus
    finally:
        bus.stop()
