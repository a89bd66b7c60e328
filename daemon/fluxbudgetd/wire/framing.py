"""Frames: a big-endian u32 with the length of the MessagePack map that follows.

No I/O: feed bytes, take whole frames. The rules:

* a frame's body is 1 to `MAX_FRAME` bytes;
* a length is checked as soon as its four bytes have arrived, before memory is used for the body;
* after a `FrameError` the decoder cannot be used: the bytes that follow have no known meaning.
"""

HEADER_BYTES = 4

# The largest real message is a hook's JSON with a tool's output. Claude Code cuts that at 10 000 characters, and a page
# of `status` is far below 1 MiB. The limit is small enough that a thousand clients cannot exhaust the memory.
MAX_FRAME = 1 << 20

#: The largest stdin that a client forwards with a command line, in bytes. (A hook's input, which may hold a tool's
#: output, can be of any size.)
MAX_STDIN = 256 << 10


class FrameError(ValueError):
    """The bytes are not a frame: the length is zero or above `MAX_FRAME`."""


def encode_frame(body: bytes) -> bytes:
    """Return a message's frame; raise `FrameError` if the message is empty or too large."""
    if not 0 < len(body) <= MAX_FRAME:
        raise FrameError(f"a message has 1 to {MAX_FRAME} bytes, this one {len(body)}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def whole_message(data: bytes) -> bytes | None:
    """Return the message if the bytes are exactly one frame, which is the usual case; otherwise None."""
    length = len(data) - HEADER_BYTES
    if 0 < length <= MAX_FRAME and int.from_bytes(data[:HEADER_BYTES], "big") == length:
        return data[HEADER_BYTES:]
    return None


class FrameDecoder:
    """Splits a stream of bytes into messages.

    Call `feed` with the bytes that arrived, then `next` until it returns None: more bytes are needed.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Return how many bytes are held because their frame is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes, in pieces of any size."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next whole message, or None; raise `FrameError` if a length is impossible."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if not 0 < length <= self._limit:
            raise FrameError(f"a frame of {length} bytes was announced; 1 to {self._limit} are allowed")
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[HEADER_BYTES:end])
        del self._buffer[:end]
        return body
