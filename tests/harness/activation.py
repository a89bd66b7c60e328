"""Start a daemon as systemd does: with a listening socket and a notification socket."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Opens the socket and then executes the daemon, so that LISTEN_PID is the daemon's.
_LAUNCHER = """
import os, socket, sys
path, notify, watchdog, count = sys.argv[1:5]
os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen(512)
for number in range(3, 3 + int(count)):
    os.dup2(listening.fileno(), number)
    os.set_inheritable(number, True)  # also when it has been that number already
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES="fluxbudgetd.socket")
if notify:
    os.environ.update(NOTIFY_SOCKET=notify)
if watchdog:
    os.environ.update(WATCHDOG_USEC=watchdog, WATCHDOG_PID=str(os.getpid()))
os.execv(sys.argv[5], sys.argv[5:])
"""


def activation(path: Path | str, notify: str = "", watchdog: float = 0.0, count: int = 1) -> tuple[str, ...]:
    """Return a command prefix that listens at the path and passes the socket `count` times."""
    microseconds = str(int(watchdog * 1e6)) if watchdog else ""
    return (sys.executable, "-c", _LAUNCHER, str(path), notify, microseconds, str(count))


class Reports:
    """The messages that a service has sent to its manager."""

    def __init__(self, receiving: socket.socket) -> None:
        self._receiving = receiving
        self.seen: list[dict[str, str]] = []

    def next(self, *names: str, seconds: float = 60.0) -> dict[str, str]:
        """Return the next message with all these names; earlier ones are dropped."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._receiving.settimeout(left)
            try:
                message = self._receiving.recv(65536).decode()
            except TimeoutError:
                break
            found = dict(line.split("=", 1) for line in message.split("\n"))
            self.seen.append(found)
            if found.keys() >= set(names):
                return found
        raise AssertionError(f"no {names} came within {seconds} s; the last were {self.seen[-5:]}")


@contextmanager
def reports(address: str) -> Iterator[Reports]:
    """Receive messages at an address: a path, or `@name` for an abstract socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(f"\0{address[1:]}" if address.startswith("@") else os.fsencode(address))
        yield Reports(receiving)
