"""Wait for the next message of a request that needs more input.

The deadline is the request's own. Bytes of a frame that is incomplete then are kept for the connection's next request.
"""

import anyio
import anyio.lowlevel

from fluxbudgetd import errors
from fluxbudgetd.server.limits import ByteCount
from fluxbudgetd.server.peer import Peer
from fluxbudgetd.server.requests import MoreInput
from fluxbudgetd.wire.framing import FrameError


async def next_message(peer: Peer, more: MoreInput, unread: ByteCount) -> bytes | None:
    """Return the next message; None if it is not complete at the deadline.

    Raises `FluxError` for an invalid frame, or if all connections hold too much; anyio's `EndOfStream` or
    `BrokenResourceError` if the peer has closed.
    """
    held, decoder = 0, peer.feed(b"")
    # Let other connections run between the messages of a peer that sends many at once.
    await anyio.lowlevel.checkpoint()
    try:
        while (body := decoder.next()) is None:
            unread.held += more.held + decoder.buffered - held
            held = more.held + decoder.buffered
            if unread.is_too_much(held):
                raise errors.BusyError("too many large requests are being received", "try again")
            with anyio.CancelScope(deadline=more.deadline) as scope:
                decoder.feed(await peer.receive())
            if scope.cancelled_caught:
                return None
    except FrameError as exc:
        raise errors.TooLargeError(str(exc), "see docs/protocol.md") from exc
    else:
        return body
    finally:
        unread.held -= held
