"""Frames: a big-endian u32 that counts the bytes of the MessagePack map behind it.

Sans-io: feed bytes in, take whole frames out. The rules:

* a frame's body is 1 to `MAX_FRAME` bytes;
* the declared length is judged as soon as its four bytes are there, before anything is kept for the body;
* after a `FrameError` the decoder is spent: the bytes that follow have no known meaning.
"""

HEADER_BYTES = 4

# The largest real message is a hook's JSON with a tool's output in it; Claude Code cuts what it shows at 10 000
# characters, and a status answer for a thousand runs is about 400 kB. One MiB is far above both and small enough that
# a thousand clients cannot make the daemon large.
MAX_FRAME = 1 << 20


class FrameError(ValueError):
    """The bytes are not a frame: the length is zero or above `MAX_FRAME`."""


def encode_frame(body: bytes) -> bytes:
    """Return the frame for a message body; raises `FrameError` when it is empty or too large."""
    if not 0 < len(body) <= MAX_FRAME:
        raise FrameError(f"a message has 1 to {MAX_FRAME} bytes, this one {len(body)}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameDecoder:
    """Cuts a stream of bytes into message bodies.

    `feed` what arrived, then call `next` until it returns None (more bytes are needed).
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def buffered(self) -> int:
        """Bytes held back because their frame is not complete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add bytes as they arrived, in pieces of any size."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next whole message body, or None; raises `FrameError` on an impossible length."""
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
