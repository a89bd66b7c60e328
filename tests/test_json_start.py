"""The beginning of a JSON object, cut anywhere."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.wire.json_start import top_level

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES), st.booleans(), st.sampled_from([None, 1]))
def test_whole_object_is_read_completely(value: dict[str, Any], is_ascii: bool, indent: int | None) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8")
    assert {name: json.loads(found) for name, found in top_level(raw)} == value


@given(st.dictionaries(st.text(), VALUES), st.data())
def test_cut_object_has_the_fields_before_the_cut(value: dict[str, Any], data: st.DataObject) -> None:
    """Only the last one may be incomplete."""
    raw = json.dumps(value, ensure_ascii=False).encode("utf-8")
    found = list(top_level(raw[: data.draw(st.integers(0, len(raw)))]))
    whole = list(top_level(raw))
    assert found[:-1] == whole[: max(len(found) - 1, 0)]
    if found:
        name, last = found[-1]
        assert name == whole[len(found) - 1][0]
        assert whole[len(found) - 1][1].startswith(last)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", []),
        (b"[1]", []),
        (b"null", []),
        (b'"a": 1', []),
        (b"{a: 1}", []),
        (b'{"a" 1}', []),
        (b'\xef\xbb\xbf { "a" :\n1\t, "b":{"a":2}, "a": "x"', [("a", "1"), ("b", '{"a":2}'), ("a", '"x"')]),
        (b'{"a": "cut \\', [("a", '"cut \\')]),
        (b'{"a": [{"b": 1}, {"b"', [("a", '[{"b": 1}, {"b"')]),
        (b'{"\\u0061": 1, "b', [("a", "1")]),
        (b'{"a": 1} {"b": 2}', [("a", "1")]),
        (b'{"a": nonsense, "b": 1}', [("a", 'nonsense, "b": 1}')]),
        (b'{"deep": ' + b"[" * 100_000, [("deep", "[" * 100_000)]),
    ],
)
def test_beginnings(raw: bytes, expected: list[tuple[str, str]]) -> None:
    assert list(top_level(raw)) == expected
