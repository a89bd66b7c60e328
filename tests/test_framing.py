"""Frames, fed whole, byte by byte, with trailing bytes, and with invalid lengths."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.framing import MAX_FRAME, FrameDecoder, FrameError, encode_frame

bodies = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def take_all(decoder: FrameDecoder) -> list[bytes]:
    found = []
    while (body := decoder.next()) is not None:
        found.append(body)
    return found


@given(bodies, st.binary(max_size=3))
def test_whole_frames_with_trailing_bytes(messages: list[bytes], rest: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(b"".join(map(encode_frame, messages)) + rest)
    assert take_all(decoder) == messages
    assert decoder.buffered == len(rest)


@given(bodies)
def test_byte_by_byte(messages: list[bytes]) -> None:
    decoder, found = FrameDecoder(), []
    for byte in b"".join(map(encode_frame, messages)):
        decoder.feed(bytes([byte]))
        found += take_all(decoder)
    assert found == messages
    assert decoder.buffered == 0


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 2**32 - 1])
def test_invalid_length_is_refused_before_its_body(length: int) -> None:
    decoder = FrameDecoder()
    decoder.feed(length.to_bytes(4, "big"))
    with pytest.raises(FrameError):
        decoder.next()


def test_largest_frame() -> None:
    decoder = FrameDecoder()
    decoder.feed(encode_frame(b"x" * MAX_FRAME))
    assert decoder.next() == b"x" * MAX_FRAME


@pytest.mark.parametrize("size", [0, MAX_FRAME + 1])
def test_body_of_an_invalid_length_is_not_encoded(size: int) -> None:
    with pytest.raises(FrameError):
        encode_frame(b"x" * size)
