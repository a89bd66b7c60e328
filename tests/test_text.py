"""Foreign bytes become text and come back, every one of them."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetctl.failure import one_line
from fluxbudgetd.wire.text import fold, unfold

tricky = st.binary(max_size=20) | st.text("\uef7f\uef80\uefff\uf000aé", max_size=6).map(str.encode)


@given(tricky)
def test_lossless_and_fit_for_every_encoder(raw: bytes) -> None:
    text = fold(raw)
    assert unfold(text) == raw
    assert msgspec.json.decode(msgspec.json.encode(text)) == text
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(text)) == text


@given(tricky, tricky)
def test_different_bytes_are_different_text(one: bytes, two: bytes) -> None:
    assert (fold(one) == fold(two)) == (one == two)


def test_ordinary_text_is_itself() -> None:
    assert fold("naïve ☃ id".encode()) == "naïve ☃ id"


@given(st.text(max_size=20))
def test_one_line_cannot_move_the_cursor(text: str) -> None:
    assert one_line(text).isprintable()
    if text.isprintable():
        assert one_line(text) == text


def test_foreign_bytes_are_written_out() -> None:
    assert one_line(fold(b"a\xff\x1b[2J")) == "a\\xff\\x1b[2J"
