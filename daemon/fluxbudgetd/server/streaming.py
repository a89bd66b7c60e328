"""A connection that has become a stream of answers."""

from contextlib import aclosing

import anyio
import anyio.lowlevel
import structlog

from fluxbudgetd import errors
from fluxbudgetd.server.draining import Draining
from fluxbudgetd.server.peer import Peer
from fluxbudgetd.server.requests import Stream
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import encode_frame

log = structlog.get_logger()


async def send_stream(peer: Peer, answers: Stream, draining: Draining) -> None:
    """Send a stream's answers until it ends, the peer closes or the server drains.

    Raises the `FluxError` that has ended the stream. A peer that reads slowly only delays its own stream.
    """
    error = None
    async with anyio.create_task_group() as tasks:
        draining.add_stream(tasks.cancel_scope)
        tasks.start_soon(_cancel_when_closed, peer, tasks.cancel_scope)
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await peer.send(encode_frame(messages.encode(answer)))
                    await anyio.lowlevel.checkpoint()
        except errors.FluxError as exc:
            error = exc
        except anyio.BrokenResourceError:
            pass
        except Exception:
            # As for a request, a defect affects only its own stream.
            log.exception("request failed")
            error = errors.FluxError("the daemon failed on this stream", "the daemon's log has the details")
        finally:
            draining.remove_stream(tasks.cancel_scope)
            tasks.cancel_scope.cancel()
    if error is not None:
        raise error


async def _cancel_when_closed(peer: Peer, scope: anyio.CancelScope) -> None:
    """Cancel the scope when the peer closes its end. What it sends until then is discarded."""
    try:
        while True:
            await peer.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        scope.cancel()
