"""Any bytes can be converted to text and back."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.text import fold, one_line, unfold

tricky = st.binary(max_size=20) | st.text("\uef7f\uef80\uefff\uf000aé", max_size=6).map(str.encode)


@given(tricky)
def test_conversion_is_lossless_and_its_text_can_be_encoded(raw: bytes) -> None:
    text = fold(raw)
    assert unfold(text) == raw
    assert msgspec.json.decode(msgspec.json.encode(text)) == text
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(text)) == text


@given(tricky, tricky)
def test_different_bytes_give_different_texts(one: bytes, two: bytes) -> None:
    assert (fold(one) == fold(two)) == (one == two)


def test_ordinary_text_is_unchanged() -> None:
    assert fold("naïve ☃ id".encode()) == "naïve ☃ id"


@given(st.text(max_size=20))
def test_shown_text_cannot_move_the_cursor(text: str) -> None:
    assert one_line(text).isprintable()
    if text.isprintable():
        assert one_line(text) == text


def test_invalid_bytes_are_shown_as_escapes() -> None:
    assert one_line(fold(b"a\xff\x1b[2J")) == "a\\xff\\x1b[2J"
