"""A connection that has become a stream of answers."""

import socket
from contextlib import aclosing, suppress

import anyio
import anyio.abc
import structlog

from fluxbudgetd import errors
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.requests import Stream
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame

_CHUNK_BYTES = 16 << 10

log = structlog.get_logger()


async def send_stream(
    stream: anyio.abc.SocketStream, peer: socket.socket, answers: Stream, draining: Draining
) -> errors.FluxError | None:
    """Send a stream's answers until it ends, the peer closes or the server drains; return the error that ended it.

    A peer that reads slowly only delays its own stream.
    """
    error = None
    async with anyio.create_task_group() as tasks:
        draining.add_stream(tasks.cancel_scope)
        tasks.start_soon(_cancel_when_closed, peer, tasks.cancel_scope)
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await stream.send(encode_frame(messages.encode(answer)))
        except errors.FluxError as exc:
            error = exc
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        except Exception:
            # As for a request, a defect affects only its own stream.
            log.exception("request failed")
            error = errors.FluxError("the daemon failed on this stream", "the daemon's log has the details")
        finally:
            draining.remove_stream(tasks.cancel_scope)
            tasks.cancel_scope.cancel()
    return error


async def _cancel_when_closed(peer: socket.socket, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the peer closes its end. What it sends until then is discarded.

    asyncio complains if the stream's own `receive` is cancelled just as bytes arrive.
    """
    with suppress(OSError, anyio.ClosedResourceError):
        while True:
            await anyio.wait_readable(peer)
            with suppress(BlockingIOError):
                if not peer.recv(_CHUNK_BYTES):
                    break
    scope.cancel()
