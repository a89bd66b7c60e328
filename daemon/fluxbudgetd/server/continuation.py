"""The next message of a request that needs more input than it came with.

The time limit is the request's own. Bytes that arrive as it passes are kept for the connection's next request.
"""

import socket

import anyio
import anyio.lowlevel

from fluxbudgetd import errors
from fluxbudgetd.server.limits import ByteCount
from fluxbudgetd.server.requests import MoreInput
from fluxbudgetd.wire.framing import FrameDecoder, FrameError

_CHUNK_BYTES = 64 << 10


async def next_message(peer: socket.socket, decoder: FrameDecoder, more: MoreInput, unread: ByteCount) -> bytes | None:
    """Return the next message; None if it is not complete at the deadline.

    Raises `FluxError` for an invalid frame, or if all connections hold too much; anyio's `EndOfStream` or
    `BrokenResourceError` if the peer has closed.
    """
    held = 0
    # Let other connections run between the messages of a peer that sends many at once.
    await anyio.lowlevel.checkpoint()
    try:
        while (body := decoder.next()) is None:
            unread.held += more.held + decoder.buffered - held
            held = more.held + decoder.buffered
            if unread.is_too_much(held):
                raise errors.BusyError("too many large requests are being received", "try again")
            if not await _is_readable(peer, more.deadline):
                return None
            decoder.feed(_received(peer))
    except FrameError as exc:
        raise errors.TooLargeError(str(exc), "see docs/protocol.md") from exc
    else:
        return body
    finally:
        unread.held -= held


async def _is_readable(peer: socket.socket, deadline: float) -> bool:
    with anyio.CancelScope(deadline=deadline) as scope:
        await anyio.wait_readable(peer)
    return not scope.cancelled_caught


def _received(peer: socket.socket) -> bytes:
    try:
        data = peer.recv(_CHUNK_BYTES)
    except BlockingIOError:
        return b""
    except OSError as exc:
        raise anyio.BrokenResourceError from exc
    if not data:
        raise anyio.EndOfStream
    return data
