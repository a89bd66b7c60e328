"""Whole records are found in damaged lines, and lines that may have lost usage are counted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.transcript_reader import SESSION, harvest, size
from harness.transcripts import assistant_line, encoded, progress_line

RECORD = encoded(assistant_line(SESSION, "whole", tokens=(5, 0, 0, 0))).rstrip()
ASSISTANT = encoded(assistant_line(SESSION, "cut", tokens=(1000, 0, 0, 0))).rstrip()
PROMPT = encoded({"parentUuid": "1", "type": "user", "message": {"role": "user", "content": "a [list]: {"}}).rstrip()
BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("line", "expected", "is_lossy"),
    [
        pytest.param(RECORD + RECORD, 10, False, id="two records"),
        pytest.param(RECORD + b" \t" + RECORD + b"\r", 10, False, id="two records, spaces"),
        pytest.param(RECORD + PROMPT + RECORD, 10, False, id="three records"),
        pytest.param(b"\0" * 5000 + RECORD, 5, False, id="NULs"),
        pytest.param(BOM + RECORD, 5, False, id="byte order mark"),
        pytest.param(RECORD + b"\0\0", 5, False, id="NULs at the end"),
        pytest.param(PROMPT[:-6] + RECORD, 5, False, id="cut prompt"),
        pytest.param(ASSISTANT[:-1] + RECORD, 5, True, id="cut response"),
        pytest.param(ASSISTANT[:40] + RECORD, 5, True, id="response that was cut early"),
        pytest.param(ASSISTANT[:40] + PROMPT, 0, True, id="cut response and a prompt"),
        pytest.param(b"{" + RECORD, 5, True, id="cut after its first byte"),
        pytest.param(ASSISTANT[:-9] + PROMPT[:-9] + ASSISTANT[:-50] + RECORD, 5, True, id="cut several times"),
        pytest.param(PROMPT[:-9] + PROMPT[:-5] + PROMPT[:40] + RECORD, 5, False, id="several cut prompts"),
        pytest.param(RECORD + ASSISTANT[:-9], 5, True, id="cut at the end"),
        pytest.param(RECORD + PROMPT[:-9], 5, False, id="prompt that was cut at the end"),
        pytest.param(ASSISTANT[300:] + RECORD, 5, True, id="beginning is missing"),
        pytest.param(RECORD + ASSISTANT[300:], 5, True, id="beginning of the second is missing"),
        pytest.param(PROMPT[:-6] + RECORD + b'"}}', 5, False, id="record inside a record"),
        pytest.param(b'{"type":"user","message":' + RECORD, 5, False, id="cut where a value follows"),
        pytest.param(b'{"type":"user","x":"\\' + RECORD, 5, False, id="cut in an escape"),
        pytest.param(b'{"type":"user","x":"\\u00' + RECORD, 5, False, id="cut in the digits of an escape"),
        pytest.param(b'{"type":"user","x":"\xf0\x9f' + RECORD, 5, False, id="cut in a character"),
        pytest.param(b'{"type":"user","x":"a{' + RECORD, 5, False, id="cut after a brace in a string"),
        pytest.param(
            b'{"type":"user","x":"list:' + ASSISTANT[:-9] + RECORD, 5, True, id="cut after a colon in a string"
        ),
        pytest.param(RECORD.replace(b'"text":"', b'"text":"\0', 1), 0, True, id="NUL in a text"),
        pytest.param(json.dumps(json.loads(RECORD)).encode() * 2, 10, False, id="JSON with spaces"),
    ],
)
def test_whole_records_count(line: bytes, expected: int, is_lossy: bool) -> None:
    found = harvest(line)
    assert (sum(map(size, found.copies)), found.skipped) == (expected, int(is_lossy))


def test_usage_of_a_record_without_its_beginning_may_be_lost_wherever_it_was_cut() -> None:
    """A cut inside a string makes what is outside strings look like their inside."""
    usage = ASSISTANT.index(b'"usage"')
    for begin in range(1, usage + 1):
        found = harvest(ASSISTANT[begin:])
        assert (len(found.copies), found.skipped) == (0, 1), ASSISTANT[begin:]


@pytest.mark.parametrize("end", [b',"normalizedMessages"', b'essages":', b',"agentId"', b',"toolUseID"', b"}\n"])
def test_quoted_line_of_a_cut_record_does_not_count_as_the_sessions_own(end: bytes) -> None:
    quoted = assistant_line(SESSION, tokens=(7, 0, 0, 0))
    del quoted["sessionId"]
    line = encoded(progress_line(SESSION, "a", quoted))
    cut = line[: line.rindex(end)]
    found = harvest(cut, cut + RECORD)
    assert ([size(copy) for copy in found.copies], found.skipped) == ([5], 2)


TEXT = st.text(st.sampled_from('ab{}[]":,\\\n\t\u00e9\U0001f600\ud83d'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def any_record(draw: st.DrawFn) -> dict[str, Any]:
    """Return a record with texts that look like JSON, and with its keys in any order."""
    content: list[Any] = draw(st.lists(VALUES, max_size=3))
    kind = draw(st.sampled_from(("assistant", "assistant", "user", "progress", "system")))
    record = assistant_line(SESSION, f"m{draw(st.integers(0, 999))}", tokens=(draw(st.integers(1, 999)), 0, 0, 0))
    record["message"]["content"] = content
    if kind == "progress":
        del record["sessionId"]
        record = progress_line(SESSION, "a", record)
    elif kind != "assistant":
        record |= {"type": kind, "message": {"role": kind, "content": content}, "x": draw(VALUES)}
    items = draw(st.permutations(list(record.items()))) if draw(st.booleans()) else list(record.items())
    return dict(items)


@st.composite
def any_line(draw: st.DrawFn) -> tuple[bytes, list[bytes], bool]:
    """Return a line of records, NULs and byte order marks, its whole records, and True if responses were cut."""
    line, whole, lost = b"", [], False
    for _ in range(draw(st.integers(1, 5))):
        record = draw(any_record())
        raw = json.dumps(record, separators=(",", ":"), ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
        raw = raw.replace("\ud83d".encode(errors="surrogatepass"), rb"\ud83d")
        match draw(st.sampled_from(("whole", "whole", "cut", "NULs", "BOM"))):
            case "whole":
                line += raw
                whole.append(raw)
            case "cut":
                line += raw[: draw(st.integers(1, len(raw) - 1))]
                lost |= record["type"] in ("assistant", "progress")
            case "NULs":
                line += bytes(draw(st.integers(1, 9)))
            case _:
                line += BOM
    return line, whole, lost


@given(any_line())
def test_any_line_gives_its_whole_records(given: tuple[bytes, list[bytes], bool]) -> None:
    """It gives exactly what they give on lines of their own, and is counted if a response was cut."""
    line, whole, lost = given
    found = harvest(line)
    alone = harvest(*whole)
    assert found.copies == alone.copies
    assert found.anomalies == alone.anomalies
    assert found.skipped <= 1
    if lost:
        assert found.skipped == 1


@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from((b'{"usage":', b"{", b"}", b'"', b"\\", b"[", b":", b"a", RECORD))).map(b"".join)
)
def test_any_bytes_are_survived(line: bytes) -> None:
    found = harvest(line)
    assert found.skipped <= 1
    assert {size(copy) for copy in found.copies} <= {0, 5}


def test_work_is_bounded() -> None:
    """A line with more than the limit gives what was found until then, and is counted."""
    found = harvest(b"{}" * 300_000 + RECORD, RECORD + RECORD)
    assert (found.copies, found.skipped) == ([], 2)
    nested = b'{"type":"assistant","usage":'
    found = harvest(nested * 50_000 + b"x" + b"}" * 50_000, RECORD)
    assert ([size(copy) for copy in found.copies], found.skipped) == ([5], 1)
