"""Reading the input of hooks: complete, cut anywhere, or invalid, and never an exception."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.server.handlers.hook_input import HookInput, parse_beginning, parse_unusual
from fluxbudgetd.server.handlers.hook_input import parse as parse_at_once
from fluxbudgetd.wire.text import fold

REAL: dict[str, Any] = {
    "session_id": "5e0c3a1e-0b6c-4a64-9d6f-0f4f0a7c8f11",
    "transcript_path": "/home/me/.claude/projects/-home-me-work/5e0c3a1e-0b6c-4a64-9d6f-0f4f0a7c8f11.jsonl",
    "cwd": "/home/me/wörk",
    "permission_mode": "default",
    "hook_event_name": "PreToolUse",
    "tool_name": "Agent",
    "tool_input": {
        "description": 'a "quoted" {task}, [here]\\',
        "prompt": "\u201clook\u201d\n\x07 at \ud83d\ude00",
        "subagent_type": "interflux:fd-quality",
        "run_in_background": True,
    },
    "tool_use_id": "toolu_01",
    "numbers": [1, -2.5e9, None, False, {}, []],
    "agent_id": "a1b2c3",
    "agent_type": "fd-safety",
    "error": "rate_limit",
}
UNDERSTOOD = HookInput(
    event="PreToolUse",
    session=REAL["session_id"],
    transcript=REAL["transcript_path"],
    cwd="/home/me/wörk",
    tool="Agent",
    subagent_type="interflux:fd-quality",
    agent_id="a1b2c3",
    agent_type="fd-safety",
    call="toolu_01",
    permission_mode="default",
    error="rate_limit",
)


def parse(raw: bytes) -> HookInput:
    """Read a complete input with both readers, which must agree on valid UTF-8."""
    found, patient = parse_at_once(raw), parse_unusual(raw)
    if raw.decode(errors="replace").encode() == raw:
        assert found in (None, patient)
    return patient if found is None else found


READERS = [pytest.param(parse, id="whole"), pytest.param(parse_beginning, id="beginning")]
#: Field of the input → attribute of the result.
NAMES = {
    "hook_event_name": "event",
    "session_id": "session",
    "transcript_path": "transcript",
    "cwd": "cwd",
    "tool_name": "tool",
    "agent_id": "agent_id",
    "agent_type": "agent_type",
    "permission_mode": "permission_mode",
    "error": "error",
}


def read(raw: bytes) -> HookInput:
    """Read an input with both readers; fail unless they agree."""
    whole, beginning = parse(raw), parse_beginning(raw)
    assert whole == beginning
    return whole


@pytest.mark.parametrize("written", [{}, {"ensure_ascii": False}, {"indent": 2}, {"separators": (",", ":")}])
def test_real_input(written: dict[str, Any]) -> None:
    assert read(json.dumps(REAL, **written).encode("utf-8", "surrogatepass")) == UNDERSTOOD


def test_byte_order_mark_is_ignored() -> None:
    raw = b"\xef\xbb\xbf" + json.dumps(REAL).encode("utf-8", "surrogatepass") + b"\r\n"
    assert parse_at_once(raw) == read(raw) == UNDERSTOOD
    assert read(b"\xef\xbb\xbf" + raw) == HookInput()


@pytest.mark.parametrize("ascii_only", [True, False])
def test_real_input_cut_anywhere(ascii_only: bool) -> None:
    """Each field is read if its value is complete. The reader of complete inputs needs the end."""
    raw = json.dumps(REAL, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    ends = {}
    for name in REAL:
        pair = json.dumps({name: REAL[name]}, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")[1:-1]
        ends[name] = raw.index(pair) + len(pair)
    for length in range(len(raw)):
        found = parse_beginning(raw[:length])
        for name, attribute in NAMES.items():
            expected = getattr(UNDERSTOOD, attribute) if length >= ends[name] else None
            assert getattr(found, attribute) == expected, (length, name)
        assert found.subagent_type == (UNDERSTOOD.subagent_type if length >= ends["tool_input"] else None), length
        assert parse(raw[:length]) == HookInput(), length
    assert parse(raw) == UNDERSTOOD


def test_fields_after_the_cut_are_absent() -> None:
    raw = json.dumps({"session_id": "s", "tool_response": "x" * 300_000, "hook_event_name": "Stop"}).encode()
    assert parse_beginning(raw[: 256 << 10]) == HookInput(session="s")
    assert parse(raw) == HookInput(session="s", event="Stop")


@pytest.mark.parametrize("value", [None, True, 5, 1.5, [], ["s"], {}, {"session_id": "x"}, ""])
@pytest.mark.parametrize("name", NAMES)
def test_field_of_the_wrong_type_is_none_and_affects_no_other(name: str, value: object) -> None:
    other = "cwd" if name != "cwd" else "tool_name"
    found = read(json.dumps({name: value, other: "/there"}).encode())
    expected: dict[str, Any] = {NAMES[other]: "/there"}
    assert found == HookInput(**expected)


@pytest.mark.parametrize("value", [None, 5, "fd-quality", [], {}, {"subagent_type": None}, {"subagent_type": ["x"]}])
def test_tool_input_of_the_wrong_shape(value: object) -> None:
    assert read(json.dumps({"tool_input": value, "tool_name": "Agent"}).encode()) == HookInput(tool="Agent")


@pytest.mark.parametrize("separators", [None, (",", ":"), (" , ", " : ")])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<task-notification>\n<task-id>a1</task-id>", True),
        ("<task-notification>", True),
        ("<task-notification", False),
        (" <task-notification>", False),
        ("what is a <task-notification>?", False),
        ("", False),
        (None, False),
        (["<task-notification>"], False),
    ],
)
def test_prompt_that_reports_a_background_task(
    prompt: object, expected: bool, separators: tuple[str, str] | None
) -> None:
    raw = json.dumps({"hook_event_name": "UserPromptSubmit", "prompt": prompt}, separators=separators).encode()
    assert read(raw) == HookInput(event="UserPromptSubmit", is_notification=expected)


def test_cut_prompt_still_reports_a_background_task() -> None:
    """A task's result may be longer than what clients forward."""
    raw = json.dumps({"hook_event_name": "UserPromptSubmit", "prompt": "<task-notification>" + "x" * 300_000}).encode()
    assert parse_beginning(raw[: 256 << 10]) == HookInput(event="UserPromptSubmit", is_notification=True)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([{"tool_use_id": "t1", "tool_input": {"a": [1]}}, {"tool_name": "Bash", "tool_use_id": "t2"}], ("t1", "t2")),
        (
            [{"tool_use_id": "t1"}, {"tool_use_id": 5}, {}, {"tool_use_id": "x" * 513}, {"tool_use_id": "t2"}],
            ("t1", "t2"),
        ),
        ([{"tool_use_id": "t1", "tool_response": "\ud83d"}], ("t1",)),
        ([{"tool_use_id": "t1"}, 5, None, ["t2"]], ("t1",)),
        ([], ()),
        ({"tool_use_id": "t1"}, ()),
        ("t1", ()),
        (None, ()),
    ],
)
def test_tool_calls_of_a_batch(calls: object, expected: tuple[str, ...]) -> None:
    raw = json.dumps({"hook_event_name": "PostToolBatch", "tool_calls": calls}).encode()
    assert read(raw) == HookInput(event="PostToolBatch", calls=expected)


def test_tool_calls_of_a_batch_with_long_results() -> None:
    """The ids that have arrived are known, that of the call whose result was cut included."""
    calls = [{"tool_name": "Agent", "tool_use_id": f"t{number}", "tool_response": "x" * 1_000} for number in range(3)]
    raw = json.dumps({"hook_event_name": "PostToolBatch", "tool_calls": calls}).encode()
    for length, known in ((raw.index(b'"t1"') + 3, 1), (raw.index(b'"t1"') + 4, 2), (len(raw) - 500, 3), (len(raw), 3)):
        found = parse_beginning(raw[:length])
        assert found == HookInput(event="PostToolBatch", calls=("t0", "t1", "t2")[:known])


def test_last_of_duplicate_keys_counts() -> None:
    assert read(b'{"session_id": "a", "cwd": "/c", "session_id": "b"}') == HookInput(session="b", cwd="/c")
    assert read(b'{"session_id": "a", "session_id": 5}') == HookInput()
    assert read(rb'{"session\u005fid": "a"}') == HookInput(session="a")


@pytest.mark.parametrize(("name", "longest"), [("session_id", 512), ("agent_id", 512), ("cwd", 4096)])
def test_text_that_is_too_long_is_none(name: str, longest: int) -> None:
    expected: dict[str, Any] = {NAMES[name]: "ü" * longest}
    assert read(json.dumps({name: "ü" * longest}).encode()) == HookInput(**expected)
    assert read(json.dumps({name: "ü" * (longest + 1)}).encode()) == HookInput()


@pytest.mark.parametrize("session", ['it\'s "mine"', "two\nlines", "nul\0nul", "\x1b[2J", "ünï", "../..", "😀"])
def test_ids_may_have_odd_characters(session: str) -> None:
    assert read(json.dumps({"session_id": session}).encode()) == HookInput(session=session)


@pytest.mark.parametrize("field", [b"\xff", b"\xc3", rb"\ud83d", rb"\udc00x", b"\n", b"\\x", b"\xed\xa0\x80"])
def test_text_that_is_invalid(field: bytes) -> None:
    """With invalid UTF-8, a lone surrogate or text that JSON forbids, the field or the whole input is None."""
    for raw in (
        b'{"session_id": "%b", "cwd": "/c"}' % field,
        b'{"tool_input": {"subagent_type": "%b"}, "cwd": "/c"}' % field,
    ):
        assert parse(raw) in (HookInput(cwd="/c"), HookInput()), raw
        found = parse_beginning(raw)
        assert found.cwd in ("/c", None)


def test_lone_surrogate_in_an_unread_field_is_ignored() -> None:
    """JavaScript may cut a string inside a surrogate pair, and then escapes the remaining half."""
    raw = rb'{"prompt": "cut \ud83d", "tool_input": {"description": "\ud83d", "subagent_type": "x"}, "session_id": "s"}'
    assert read(raw) == HookInput(session="s", subagent_type="x")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"null", b"[]", b'"text"', b"1", b"\0", b"\xff\xfe", b"{", b"{,}", b'{"a"}', b'{"session_id":}',
        b"{'session_id': 's'}", b"{session_id: 1}", b"[" * 100_000, b'{"a":' * 100_000, b'[{"a":' * 50_000,
        b'{"tool_input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"tool_input": ' + b'{"a":' * 100_000,
        b'{"n": ' + b"9" * 100_000 + b"}", b'{"n": 1e999999}', b"{" + b" " * 200_000, b"\xef\xbb\xbf{}",
    ],
    ids=lambda raw: repr(raw[:18]),
)  # fmt: skip
def test_invalid_input_has_no_fields(reader: Any, raw: bytes) -> None:
    assert reader(raw) == HookInput()


def test_fields_before_invalid_text_count_in_a_cut_input() -> None:
    assert parse_beginning(b'{"session_id": "s", "x": ' + b"[" * 100_000) == HookInput(session="s")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from([*NAMES, "tool_input", "subagent_type", "prompt"]) | st.text(max_size=4)
inputs = st.dictionaries(keys, json_values | st.fixed_dictionaries({"subagent_type": json_values}), max_size=9)


@given(inputs, st.booleans(), st.data())
def test_complete_and_cut_inputs_have_the_same_fields(
    value: dict[str, Any], ascii_only: bool, data: st.DataObject
) -> None:
    """Every field has the value that the JSON says, and a cut input has no field that the complete one lacks."""
    raw = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False).encode()
    found = read(raw)
    for name, attribute in NAMES.items():
        expected = value.get(name)
        if isinstance(expected, str) and expected:
            assert getattr(found, attribute) == fold(expected.encode())
        else:
            assert getattr(found, attribute) is None
    cut = parse_beginning(raw[: data.draw(st.integers(0, len(raw)))])
    for attribute in (*NAMES.values(), "subagent_type"):
        assert getattr(cut, attribute) in (getattr(found, attribute), None)


pieces = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'"session_id"', b'"tool_input"', b'"subagent_type"', b'"cwd"',
    b'"x"', b"1", b"-", b"null", b"NaN", b" ", b"\n", b"\0", b"\xff", b"\xc3", b"\\ud800", b"\\u0000", b"\xed\xa0\x80",
]  # fmt: skip


@given(st.binary(max_size=60) | st.lists(st.sampled_from(pieces), max_size=30).map(b"".join))
def test_no_input_raises(raw: bytes) -> None:
    for reader in (parse, parse_beginning):
        assert isinstance(reader(raw), HookInput)
        assert isinstance(reader(b'{"session_id": "' + raw), HookInput)
        assert isinstance(
            reader(b'{"session_id": "' + raw + b'", "tool_input": {"subagent_type": "' + raw + b'"}}'), HookInput
        )
