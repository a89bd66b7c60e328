"""The server inside the test's own process."""

import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import anyio

from fluxbudgetd.server.limits import Limits
from fluxbudgetd.server.requests import Handler
from fluxbudgetd.server.server import Server
from harness.daemon import PATIENCE


@asynccontextmanager
async def served(
    path: Path,
    handler: Handler,
    limits: Limits | None = None,
    turn: AbstractContextManager[object] = nullcontext(),  # noqa: B008  it has no state
) -> AsyncIterator[Server]:
    """Serve a socket at this path. The block may take a minute."""
    server = Server(handler, limits, turn)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, listening)
            with anyio.fail_after(PATIENCE):
                yield server
            tasks.cancel_scope.cancel()
