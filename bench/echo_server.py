"""Servers that echo what they receive, as a baseline for the daemon: `python echo_server.py KIND SOCKET`."""

import asyncio
import socket
import sys

import anyio
import anyio.abc

_CHUNK_BYTES = 64 << 10


def loop(path: str) -> None:
    """Serve one connection after the other with blocking calls: the least that a server in Python must do."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(128)
        while True:
            peer, _ = listening.accept()
            with peer:
                peer.sendall(peer.recv(_CHUNK_BYTES))


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def protocol(path: str) -> None:
    """Serve with a bare `asyncio.Protocol`."""
    server = await asyncio.get_running_loop().create_unix_server(_Echo, path)
    await server.serve_forever()


async def streams(path: str) -> None:
    """Serve with anyio's streams, with a task per connection."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            try:
                while True:
                    await stream.send(await stream.receive())
            except anyio.EndOfStream:
                pass

    async with await anyio.create_unix_listener(path) as listener:
        await listener.serve(echo)


if __name__ == "__main__":
    kind, place = sys.argv[1:]
    if kind == "loop":
        loop(place)
    else:
        anyio.run({"protocol": protocol, "anyio": streams}[kind], place)
