"""Run a program with an HTTP server on its loopback: `python offline.py SOCKET COMMAND …`.

It listens on a free port, passes the listening socket to the process that listens on the Unix socket SOCKET, sets
ANTHROPIC_BASE_URL, and becomes the program. In a new network namespace, the program can reach nothing else.
"""

import fcntl
import os
import socket
import struct
import sys

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # <linux/sockios.h>, <linux/if.h>


def main() -> None:
    """Pass on the listening socket, then run the command."""
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as server:
        _raise_loopback(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server.connect(sys.argv[1])
        socket.send_fds(server, [b"."], [listener.fileno()])
        os.environ["ANTHROPIC_BASE_URL"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  no shell is needed


def _raise_loopback(any_socket: socket.socket) -> None:
    """Bring up the loopback interface, which is down in a new network namespace."""
    request = struct.pack("16sH22x", b"lo", 0)
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
    if not flags & _UP:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH22x", name, flags | _UP))


if __name__ == "__main__":
    main()
