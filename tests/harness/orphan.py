"""Connections of a process that was adopted by init.

A hook shows the daemon in which process its session runs: an ancestor of the hook. If the test called hooks itself, its
own process would count as inside that session, and could not change a hard run any more. So a process connects instead
that has no ancestor but init, and passes the connection on.
"""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

_SCRIPT = """
import os, socket, sys
if os.fork():
    os._exit(0)
channel = socket.socket(fileno=int(sys.argv[1]))
while path := channel.recv(4096):
    with socket.socket(socket.AF_UNIX) as peer:
        try:
            peer.connect(path)
        except OSError as exc:
            channel.send(str(exc.errno).encode())
        else:
            socket.send_fds(channel, [b"0"], [peer.fileno()])
"""


class _Connector:
    """The process that connects; it is started when it is needed, and ends with the tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None

    def connect(self, path: Path) -> socket.socket:
        with self._lock:
            channel = self._channel = self._channel or _started()
            channel.send(os.fsencode(path))
            answer, descriptors, _, _ = socket.recv_fds(channel, 64, 1)
        if not descriptors:
            number = int(answer)
            raise OSError(number, os.strerror(number))
        return socket.socket(fileno=descriptors[0])


def _started() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argv = [sys.executable, "-I", "-S", "-c", _SCRIPT, str(theirs.fileno())]
        # Its output is not the tests', whose pipes it would keep open.
        null = subprocess.DEVNULL
        subprocess.run(argv, check=True, pass_fds=[theirs.fileno()], stdin=null, stdout=null, stderr=null)
    return ours


_connector = _Connector()


def connected_by_orphan(path: Path) -> socket.socket:
    """Return a connection to a socket, made by a process without ancestors; raises `OSError`."""
    return _connector.connect(path)
