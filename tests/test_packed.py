"""The pipe's codec agrees with msgspec."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.packed import PackedError, pack, unpack

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
others = st.none() | st.booleans() | text | st.binary(max_size=300)
edges = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]
below = [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]
sized = [
    value
    for size in (0, 15, 16, 31, 32, 255, 256, 65535, 65536)
    for value in ("x" * size, b"x" * size, [1] * size, {str(number): None for number in range(size)})
]


def trees(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(text, inner, max_size=20), max_leaves=40
    )


@given(trees(others | st.integers(0, 2**64 - 1)))
def test_msgspec_reads_what_is_sent(value: Any) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value


@given(trees(others | st.integers(-(2**63), 2**64 - 1)))
def test_what_msgspec_writes_is_read(value: Any) -> None:
    assert unpack(msgspec.msgpack.encode(value)) == value


@pytest.mark.parametrize("value", [*edges, *sized], ids=lambda value: str(value)[:12])
def test_edge_cases_of_encoding(value: Any) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value


@pytest.mark.parametrize("value", [*edges, *below, *sized], ids=lambda value: str(value)[:12])
def test_edge_cases_of_decoding(value: Any) -> None:
    assert unpack(msgspec.msgpack.encode(value)) == value


@given(st.floats(allow_nan=False))
def test_floats_are_read(value: float) -> None:
    read = unpack(msgspec.msgpack.encode(value))
    assert isinstance(read, float)
    assert math.isclose(read, value, rel_tol=0)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_an_error(data: bytes) -> None:
    try:
        unpack(data)
    except PackedError:
        return


@pytest.mark.parametrize("value", [1.5, {1: 2}.keys()])
def test_values_outside_the_protocol_are_refused(value: Any) -> None:
    with pytest.raises(PackedError):
        pack(value)


@pytest.mark.parametrize(
    "data", [b"", b"\xc0\xc0", b"\x81\x01\x02", b"\xa5abc", b"\xc4\x02x", b"\xc7\x01\x01x", b"\x91" * 5000]
)
def test_bytes_that_are_not_exactly_one_value_are_refused(data: bytes) -> None:
    with pytest.raises(PackedError):
        unpack(data)
