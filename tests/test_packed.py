"""The hot client's codec agrees with msgspec."""

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.packed import PackedError, Value, pack, unpack

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | text
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(text, inner, max_size=20), max_leaves=40
)
edges = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1]
edges += [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)]


@given(values)
def test_values_are_encoded_as_by_msgspec(value: Any) -> None:
    assert pack(value) == msgspec.msgpack.encode(value)
    assert unpack(pack(value)) == value


@pytest.mark.parametrize(
    "value", [*edges, "x" * 31, "x" * 32, "x" * 255, "x" * 256, "x" * 65536, [1] * 15, [1] * 70000]
)
def test_edges_are_encoded_as_by_msgspec(value: Any) -> None:
    assert pack(value) == msgspec.msgpack.encode(value)
    assert unpack(msgspec.msgpack.encode(value)) == value


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536])
def test_bytes_are_sent(size: int) -> None:
    """A hook's input is sent unchanged."""
    request: dict[str, Value | bytes] = {"input": b"\xff" * size}
    assert pack(request) == msgspec.msgpack.encode(request)


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


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 1.5, {1: 2}.keys()])
def test_values_outside_the_protocol_are_refused(value: Any) -> None:
    with pytest.raises(PackedError):
        pack(value)


@pytest.mark.parametrize("data", [b"", b"\xc0\xc0", b"\x81\x01\x02", b"\xa5abc", b"\xc4\x01x", b"\x91" * 5000])
def test_bytes_that_are_not_exactly_one_value_are_refused(data: bytes) -> None:
    with pytest.raises(PackedError):
        unpack(data)
