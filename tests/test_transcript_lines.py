"""What the reader takes from one line of a transcript."""

from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.model import Copy, TranscriptFile
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.wire.text import fold
from harness.transcript_reader import SESSION
from harness.transcripts import Tokens, Transcript, assistant_line, encoded, encoded_without


def taken(claude_dir: Path, *lines: bytes) -> tuple[list[Copy], TranscriptFile]:
    """Return what is read of a session that consists of these lines."""
    writer = Transcript(claude_dir, SESSION)
    writer.line(b"".join(lines))
    reading = TranscriptSource(str(claude_dir)).read(SESSION)
    assert reading.status.state == "ok"
    assert not reading.more
    (file,) = reading.files
    assert file.offset == writer.path.stat().st_size
    return list(reading.copies), file


def test_line_with_every_field(claude_dir: Path) -> None:
    line = encoded(assistant_line(SESSION, tokens=(1, 20, 300, 4000), at="2026-02-20T17:05:55.250Z"))
    (copy,), _ = taken(claude_dir, line)
    assert (copy.input, copy.output, copy.cache_read, copy.cache_creation, copy.size) == (1, 20, 300, 4000, 4321)
    assert (copy.agent, copy.model, copy.sidechain) == ("main-session", "claude-opus-4-6", False)
    assert copy.at == 1771607155250000
    assert 0 <= copy.message < 2**63
    assert 0 <= copy.key < 2**63


@pytest.mark.parametrize(
    ("usage", "expected", "anomalies"),
    [
        ({"input_tokens": 7}, (7, 0, 0, 0), 0),
        ({"input_tokens": None}, (0, 0, 0, 0), 0),
        ({"input_tokens": -7, "output_tokens": 5}, (0, 5, 0, 0), 1),
        ({"input_tokens": 7.0, "output_tokens": "7"}, (0, 0, 0, 0), 2),
        ({"input_tokens": True, "output_tokens": False}, (0, 0, 0, 0), 2),
        ({"input_tokens": [7], "output_tokens": {"n": 7}}, (0, 0, 0, 0), 2),
        ({"input_tokens": 2**63 - 1}, (2**63 - 1, 0, 0, 0), 0),
        ({"input_tokens": 2**63, "output_tokens": 10**40, "cache_read_input_tokens": 10**4000}, (0, 0, 0, 0), 3),
        ({"cache_creation_input_tokens": 9, "cache_creation": None}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": [1]}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {}}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, (0, 0, 0, 4), 0),
        (
            {
                "cache_creation_input_tokens": "x",
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
            },
            (0, 0, 0, 7),
            0,
        ),
        (
            {
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": -4},
            },
            (0, 0, 0, 0),
            1,
        ),
        (
            {"cache_creation": {"ephemeral_5m_input_tokens": 2**63 - 1, "ephemeral_1h_input_tokens": 1}},
            (0, 0, 0, 0),
            1,
        ),
    ],
)
def test_counts_that_are_not_whole_numbers_are_dropped(
    claude_dir: Path, usage: dict[str, Any], expected: Tokens, anomalies: int
) -> None:
    (copy,), file = taken(claude_dir, encoded(assistant_line(SESSION, **usage)))
    assert (copy.input, copy.output, copy.cache_read, copy.cache_creation) == expected
    assert (file.anomalies, file.skipped) == (anomalies, 0)


USAGE = b'"message":{"id":"m","usage":{"input_tokens":5}}'


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"type":"assistant","x":"\xff\xfe",' + USAGE + b"}", id="invalid UTF-8 in a string"),
        pytest.param(b'{"type":"assistant",\xff' + USAGE + b"}", id="invalid UTF-8 outside"),
        pytest.param(b'{"type":"assistant","x":"\0",' + USAGE + b"}", id="NUL in a string"),
        pytest.param(b"\0" * 5000 + b'{"type":"assistant",' + USAGE + b"}", id="NULs"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + b"]" * 99_999 + b"," + USAGE + b"}", id="deep JSON"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + USAGE, id="deep and broken"),
        pytest.param(b'{"type":"assistant",' + USAGE, id="cut"),
        pytest.param(b'{"type":"assistant",' + USAGE + b"}{}", id="two"),
        pytest.param(b'["usage"]', id="no object"),
        pytest.param(b'"usage"', id="a string"),
        pytest.param(b'{"type":"assistant","message":{"usage":5}}', id="usage a number"),
        pytest.param(b'{"type":"assistant","message":{"usage":null}}', id="usage null"),
        pytest.param(b'{"type":"assistant","message":{"usage":[5]}}', id="usage an array"),
        pytest.param(b'{"type":"assistant","message":["usage"]}', id="message an array"),
        pytest.param(b'{"type":"assistant","message":{"usage":{"input_tokens":05}}}', id="no number"),
    ],
)
def test_unreadable_lines_are_skipped_and_counted(claude_dir: Path, line: bytes) -> None:
    good = encoded(assistant_line(SESSION, "after", tokens=(3, 0, 0, 0)))
    (copy,), file = taken(claude_dir, line + b"\n", good)
    assert copy.size == 3
    assert (file.skipped, file.anomalies) == (1, 0)
    note = f"{file.path}: 1 lines could not be read"
    assert TranscriptSource(str(claude_dir)).read(SESSION).status.notes == (note,)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no JSON at all \xff \0", id="garbage"),
        pytest.param(b'{"type":"user","message":{"role":"user","content":"hello"}}', id="a prompt"),
        pytest.param(b'{"type":"user","message":"usage","usage":[1]}', id="usage of a prompt"),
        pytest.param(b'{"type":"user","message":{"usage":5}}', id="malformed usage of a prompt"),
        pytest.param(b'{"type":"user","toolUseResult":{"usage":{"input_tokens":5}}}', id="usage of a tool"),
        pytest.param(b'{"type":5,' + USAGE + b"}", id="type not text"),
        pytest.param(b'{"type":"assistant","message":{"content":"no \\"usage\\" here"}}', id="quoted"),
        pytest.param(b'{"type":"assistant","message":{"content":{"usage":1}}}', id="elsewhere"),
        pytest.param(b'{"type":"file-history-snapshot","snapshot":{}}', id="unknown type"),
    ],
)
def test_lines_without_usage_are_ignored_silently(claude_dir: Path, line: bytes) -> None:
    copies, file = taken(claude_dir, line + b"\n")
    assert (copies, file.skipped, file.anomalies) == ([], 0, 0)


@pytest.mark.parametrize(
    ("escaped", "size"),
    [(rb"\ud83d", 5), (rb"\ude00", 5), (rb"\ud83d\ude00", 5), (rb"\\ud83d", 5), (rb"\ud83d\ud83d\ude00\\\u00e9", 5)],
)
def test_lone_surrogate_is_valid(claude_dir: Path, escaped: bytes, size: int) -> None:
    """JavaScript escapes a lone surrogate, which is what is left of an emoji when text is cut."""
    usage = USAGE.replace(b'"id"', rb'"model":"\"\u00e9\ud83d\ude00","id"')
    (copy,), file = taken(claude_dir, b'{"type":"assistant","x":"' + escaped + b'",' + usage + b"}\n")
    assert (copy.size, copy.model, file.skipped) == (size, '"é😀', 0)


def test_response_without_an_id_is_known_by_its_uuid(claude_dir: Path) -> None:
    """Without a uuid, each line is a response of its own."""
    by_uuid = assistant_line(SESSION, None, tokens=(5, 0, 0, 0))
    nameless = encoded_without(assistant_line(SESSION, None, tokens=(7, 0, 0, 0)), "uuid")
    odd = assistant_line(SESSION, tokens=(9, 0, 0, 0)) | {"uuid": "msg_1"}
    odd["message"]["id"] = 17
    named = assistant_line(SESSION, "msg_1", tokens=(11, 0, 0, 0))
    copies, _ = taken(claude_dir, encoded(by_uuid) * 2, nameless * 2, encoded(odd), encoded(named))
    assert [copy.size for copy in copies] == [5, 5, 7, 7, 9, 11]
    names = [copy.message for copy in copies]
    assert names[0] == names[1]
    assert len(set(names)) == 5


def test_responses_are_told_apart_by_request(claude_dir: Path) -> None:
    """Request ids that are missing, null or not text are all the same."""
    lines = [
        assistant_line(SESSION, "m", request=None),
        assistant_line(SESSION, "m") | {"requestId": None},
        assistant_line(SESSION, "m") | {"requestId": ["r"]},
        assistant_line(SESSION, "m", request=""),
        assistant_line(SESSION, "m", request="r1"),
        assistant_line(SESSION, "m", request="r2"),
        assistant_line(SESSION, "m2", request="r2"),
    ]
    copies, _ = taken(claude_dir, *map(encoded, lines))
    assert len({copy.message for copy in copies}) == 2
    assert [len({copy.key for copy in group}) for group in (copies[:4], copies[3:])] == [1, 4]


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("claude-opus-4-6", "claude-opus-4-6"),
        ("<synthetic>", ""),
        (None, ""),
        (5, ""),
        ("modèle", "modèle"),
        ("\uef80", fold("\uef80".encode())),
    ],
)
def test_model(claude_dir: Path, given: Any, model: str) -> None:
    (copy,), _ = taken(claude_dir, encoded(assistant_line(SESSION, model=given)))
    assert copy.model == model


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("yesterday", None),
        ("", None),
        (None, None),
        ({}, None),
    ],
)
def test_time(claude_dir: Path, given: Any, at: int | None) -> None:
    (copy,), _ = taken(claude_dir, encoded(assistant_line(SESSION, at=given)))
    assert copy.at == at


@pytest.mark.parametrize(
    ("given", "sidechain"), [(True, True), (False, False), (None, False), ("true", False), (1, False)]
)
def test_sidechain(claude_dir: Path, given: Any, sidechain: bool) -> None:
    (copy,), _ = taken(claude_dir, encoded(assistant_line(SESSION, sidechain=given)))
    assert copy.sidechain is sidechain
