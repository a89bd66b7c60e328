"""Send requests over many connections at once: `python generator.py SOCKET CONNECTIONS SECONDS <FRAME`.

Each connection sends its next request as soon as it has its answer. The response times go to stdout as doubles.
This script imports nothing of fluxbudget: it works with any server that answers a frame with a frame.
"""

from __future__ import annotations  # array[float] is only a type checker's

import select
import socket
import sys
import time
from array import array

#: Warm-up: these responses are ignored.
WARM_SECONDS = 0.1


def main(path: str, connections: int, seconds: float, frame: bytes) -> array[float]:
    """Return the response times in seconds; raises `EOFError` if the server closes a connection."""
    epoll = select.epoll()
    peers: dict[int, socket.socket] = {}
    received: dict[int, bytes] = {}
    asked: dict[int, float] = {}
    times = array("d")
    for _ in range(connections):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        peers[peer.fileno()] = peer
        epoll.register(peer, select.EPOLLIN)
    count_from = time.perf_counter() + WARM_SECONDS
    end = count_from + seconds
    for file, peer in peers.items():
        received[file] = b""
        asked[file] = time.perf_counter()
        peer.sendall(frame)
    while asked:
        for file, _ in epoll.poll():
            data = peers[file].recv(65536)
            if not data:
                raise EOFError("the server has closed a connection")
            received[file] += data
            if len(received[file]) < 4 + int.from_bytes(received[file][:4], "big"):
                continue
            received[file] = b""
            now = time.perf_counter()
            before = asked.pop(file)
            if count_from <= before and now <= end:
                times.append(now - before)
            if now < end:
                asked[file] = time.perf_counter()
                peers[file].sendall(frame)
    return times


if __name__ == "__main__":
    found = main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.stdin.buffer.read())
    sys.stdout.buffer.write(found.tobytes())
