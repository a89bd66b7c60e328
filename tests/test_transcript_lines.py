"""What is taken from one line of a transcript."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from fluxbudgetd.model import OWN, QUOTED, SIDECHAIN, Copy, ModelUsage, TranscriptFile
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.wire.text import fold
from harness.transcript_reader import SESSION, harvest, size
from harness.transcripts import Tokens, Transcript, assistant_line, encoded, encoded_without, progress_line


def taken(claude_dir: Path, *lines: bytes) -> tuple[list[Copy], TranscriptFile]:
    """Return what is read of a session that consists of these lines."""
    writer = Transcript(claude_dir, SESSION)
    writer.line(b"".join(lines))
    reading = TranscriptSource([str(claude_dir)]).read(SESSION)
    assert reading.status.state == "ok"
    assert not reading.more
    (file,) = reading.files
    assert file.offset == writer.path.stat().st_size
    return list(reading.copies), file


def copy_of(line: dict[str, Any], **known: Any) -> Copy:
    """Return the one copy of a line."""
    (copy,) = harvest(encoded(line), **known).copies
    return copy


def digest(raw: bytes, kind: bytes = b"") -> int:
    return int.from_bytes(blake2b(raw, digest_size=8, person=kind).digest()) >> 1


def test_line_with_every_field(claude_dir: Path) -> None:
    line = assistant_line(
        SESSION,
        tokens=(1, 20, 300, 4000),
        at="2026-02-20T17:05:55.250Z",
        speed="fast",
        cache_creation={"ephemeral_5m_input_tokens": 3000, "ephemeral_1h_input_tokens": 1000},
    )
    line["message"]["stop_reason"] = "end_turn"
    (copy,), file = taken(claude_dir, encoded(line))
    assert (copy.input, copy.output, copy.cache_read, copy.cache_creation, copy.cache_1h) == (1, 20, 300, 4000, 1000)
    assert (copy.agent, copy.model, copy.place) == ("main-session", "claude-opus-4-6", OWN)
    assert (copy.is_final, copy.is_fast, copy.is_fork, copy.has_request, copy.below) == (True, True, False, True, ())
    assert copy.at == file.latest == 1771607155250000


@pytest.mark.parametrize(
    ("usage", "expected", "anomalies"),
    [
        ({"input_tokens": 7}, (7, 0, 0, 0), 0),
        ({"input_tokens": None}, (0, 0, 0, 0), 0),
        ({"input_tokens": -7, "output_tokens": 5}, (0, 5, 0, 0), 1),
        ({"input_tokens": 7.0, "output_tokens": "7", "cache_read_input_tokens": 7.5}, (7, 0, 0, 0), 2),
        ({"input_tokens": -1.0, "output_tokens": 2.0**63, "cache_read_input_tokens": 1e300}, (0, 0, 0, 0), 3),
        ({"input_tokens": True, "output_tokens": False}, (0, 0, 0, 0), 2),
        ({"input_tokens": [7], "output_tokens": {"n": 7}}, (0, 0, 0, 0), 2),
        ({"input_tokens": 2**63 - 1}, (2**63 - 1, 0, 0, 0), 0),
        ({"input_tokens": 2**63, "output_tokens": 10**40, "cache_read_input_tokens": 10**4000}, (0, 0, 0, 0), 3),
        ({"cache_creation_input_tokens": 9, "cache_creation": None}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": [1]}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {}}, (0, 0, 0, 9), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 4}}, (0, 0, 0, 4), 0),
        ({"cache_creation_input_tokens": 9, "cache_creation": {"ephemeral_1h_input_tokens": 0}}, (0, 0, 0, 9), 0),
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
            (0, 0, 0, 9),
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
    assert copy.cache_1h <= copy.cache_creation
    assert (file.anomalies, file.skipped) == (anomalies, 0)


def iteration(kind: str, tokens: int, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "input_tokens": tokens, "output_tokens": 10 * tokens, **fields}


@pytest.mark.parametrize(
    ("iterations", "expected", "anomalies"),
    [
        (None, (), 0),
        ([], (), 0),
        ("none", (), 0),
        ([None], (), 0),
        ([iteration("message", 1), iteration("fallback", 2)], (), 0),
        ([iteration("advisor_message", 1, model="m")], (ModelUsage("m", 1, 10, 0, 0, 0),), 0),
        ([iteration("compaction", 1)], (ModelUsage("claude-opus-4-6", 1, 10, 0, 0, 0),), 0),
        (
            [
                iteration("advisor_message", 1, model="m"),
                iteration("compaction", 2),
                iteration("compaction", 4, model="m"),
            ],
            (ModelUsage("m", 5, 50, 0, 0, 0), ModelUsage("claude-opus-4-6", 2, 20, 0, 0, 0)),
            0,
        ),
        (
            [
                iteration(
                    "advisor_message",
                    1,
                    model="m",
                    cache_read_input_tokens=3,
                    cache_creation_input_tokens=9,
                    cache_creation={"ephemeral_1h_input_tokens": 4},
                )
            ],
            (ModelUsage("m", 1, 10, 3, 4, 4),),
            0,
        ),
        ([iteration("compaction", -1, output_tokens=5)], (ModelUsage("claude-opus-4-6", 0, 5, 0, 0, 0),), 1),
        ([iteration("compaction", 0)], (), 0),
        ([iteration("dream", 1), iteration("dream", 0), iteration("message", -1)], (), 1),
        (
            [iteration("compaction", 2**63 - 1, output_tokens=1)] * 2,
            (ModelUsage("claude-opus-4-6", 2**63 - 1, 2, 0, 0, 0),),
            0,
        ),
    ],
)
def test_usage_below_the_top_level(iterations: Any, expected: tuple[ModelUsage, ...], anomalies: int) -> None:
    """Advisors and compactions are not included at the top level; their sums never wrap."""
    found = harvest(encoded(assistant_line(SESSION, tokens=(7, 0, 0, 0), iterations=iterations)))
    (copy,) = found.copies
    assert (size(copy), copy.below, found.anomalies) == (7, expected, anomalies)


USAGE = b'"message":{"id":"m","usage":{"input_tokens":5}}'


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"type":"assistant",\xff' + USAGE + b"}", id="invalid UTF-8 outside strings"),
        pytest.param(b'{"type":"assistant","message":{"id":"\xff","usage":{}}}', id="invalid UTF-8 in an id"),
        pytest.param(b'{"type":"assistant","x":"\0",' + USAGE + b"}", id="NUL in a string"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + b"]" * 99_999 + b"," + USAGE + b"}", id="deep JSON"),
        pytest.param(b'{"type":"assistant","x":' + b"[" * 99_999 + USAGE, id="deep and cut"),
        pytest.param(b'{"type":"assistant",' + USAGE, id="cut"),
        pytest.param(b'{"type":"assistant","x":"the usage would come la', id="cut before the usage"),
        pytest.param(b'{"type":"progress","data":{"type":"agent_pro', id="cut progress"),
        pytest.param(b'{"uuid":"1","x":"', id="cut before the type"),
        pytest.param(b'{"uu', id="cut in the first key"),
        pytest.param(b'er text"}],"usage":{"input_tokens":5}},"type":"assistant"}', id="the end of a record"),
        pytest.param(b'["usage"' + b" " * 50 + b"]", id="no object"),
        pytest.param(b'"usage"' + b" " * 50, id="a string"),
        pytest.param(b'{"type":"assistant", "message":{"usage":5}}', id="usage a number"),
        pytest.param(b'\0\0{"type":"assis', id="NULs, cut in the type"),
        pytest.param(b'{"type":"assistant","message":{"usage":null}}', id="usage null"),
        pytest.param(b'{"type":"assistant","message":{"usage":[5]}}', id="usage an array"),
        pytest.param(b'{"type":"assistant","message":["usage"], "x":1}', id="message an array"),
        pytest.param(b'{"type":"assistant","message":{"usage":{"input_tokens":05}}}', id="no number"),
    ],
)
def test_lines_whose_usage_cannot_be_read_are_counted(claude_dir: Path, line: bytes) -> None:
    good = encoded(assistant_line(SESSION, "after", tokens=(3, 0, 0, 0)))
    (copy,), file = taken(claude_dir, line + b"\n", good)
    assert size(copy) == 3
    assert (file.skipped, file.anomalies) == (1, 0)
    note = f"{file.path}: 1 line could not be read"
    reading = TranscriptSource([str(claude_dir)]).read(SESSION)
    assert reading.status.notes == reading.losses.unread == (note,)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no JSON at all \xff \0", id="garbage"),
        pytest.param(b"no JSON at all \xff \0" * 9, id="more garbage"),
        pytest.param(b'["usage"]', id="too short for a record"),
        pytest.param(b'{"type":"user"}', id="a short record"),
        pytest.param(b"\0" * 5000, id="NULs"),
        pytest.param(b"\xef\xbb\xbf", id="byte order mark"),
        pytest.param(b'{"type":"user","message":{"role":"user","content":"hello"}}', id="a prompt"),
        pytest.param(b'{"type":"user","message":"usage","usage":[1]}', id="usage of a prompt"),
        pytest.param(b'{"type":"user","message":{"usage":5}}', id="malformed usage of a prompt"),
        pytest.param(b'{"type":"user","toolUseResult":{"usage":{"input_tokens":5}}}', id="usage of a tool"),
        pytest.param(b'{"type":"user","toolUseResult":{"usage":{"input_tok', id="cut usage of a tool"),
        pytest.param(b'{"parentUuid":"1","type":"user","message":{"content":"half of a te', id="a cut prompt"),
        pytest.param(b'{"type":"system","subtype":', id="cut system record"),
        pytest.param(b'{"type":5,' + USAGE + b"}", id="type not text"),
        pytest.param(b'{"type":"assistant","message":{"content":"no \\"usage\\" here"}}', id="quoted"),
        pytest.param(b'{"type":"assistant","message":"\\"usage\\" of a text"}', id="message a text"),
        pytest.param(b'{"type":"assistant","message":{"content":{"usage":1}}}', id="elsewhere"),
        pytest.param(b'{"type":"progress","data":{"type":"hook_progress","usage":1}}', id="another progress"),
        pytest.param(b'{"type":"progress","data":"usage","usage":1}', id="a progress of no kind"),
        pytest.param(b'{"type":"file-history-snapshot","snapshot":{}}', id="unknown type"),
    ],
)
def test_lines_without_usage_are_ignored_silently(claude_dir: Path, line: bytes) -> None:
    copies, file = taken(claude_dir, line + b"\n")
    assert (copies, file.skipped, file.anomalies) == ([], 0, 0)


def test_invalid_utf8_in_a_text_does_not_matter() -> None:
    found = harvest(b'{"type":"assistant","x":"\xff\xfe",' + USAGE + b"}")
    assert ([size(copy) for copy in found.copies], found.skipped) == ([5], 0)


@pytest.mark.parametrize(
    ("escaped", "tokens"),
    [(rb"\ud83d", 5), (rb"\ude00", 5), (rb"\ud83d\ude00", 5), (rb"\\ud83d", 5), (rb"\ud83d\ud83d\ude00\\\u00e9", 5)],
)
def test_lone_surrogate_is_valid(claude_dir: Path, escaped: bytes, tokens: int) -> None:
    """JavaScript escapes a lone surrogate, which is what is left of an emoji when text is cut."""
    usage = USAGE.replace(b'"id"', rb'"model":"\"\u00e9\ud83d\ude00","id"')
    (copy,), file = taken(claude_dir, b'{"type":"assistant","x":"' + escaped + b'",' + usage + b"}\n")
    assert (size(copy), copy.model, file.skipped) == (tokens, '"é😀', 0)


def test_line_with_both_ids_is_known_by_them() -> None:
    """Ledgers of earlier versions have the same digests."""
    copy = copy_of(assistant_line(SESSION, "msg_1", request="req_1"))
    assert copy.message == digest(b"msg_1")
    assert copy.identity == digest(copy.message.to_bytes(8) + b"req_1", b"request")
    assert copy.has_request
    other = copy_of(assistant_line("another-session", "msg_1", request="req_1"), session="another-session")
    assert (other.identity, other.message) == (copy.identity, copy.message)


@pytest.mark.parametrize("request_id", [None, "", ["req_1"], 5])
def test_line_without_a_request_id_is_known_by_its_uuid(request_id: Any) -> None:
    line = assistant_line(SESSION, "msg_1") | {"requestId": request_id}
    copy = copy_of(line)
    assert (copy.identity, copy.message) == (digest(line["uuid"].encode(), b"uuid"), digest(b"msg_1"))
    assert not copy.has_request


def test_line_without_a_uuid_is_known_by_its_bytes() -> None:
    line = assistant_line(SESSION, "msg_1", request=None)
    one, same, other = harvest(
        encoded_without(line, "uuid"),
        b"\0" + encoded_without(line, "uuid").replace(b"\n", b"\r\n"),
        encoded_without(line | {"sessionId": "another"}, "uuid"),
    ).copies
    assert one == same
    assert one.identity != other.identity
    assert one.message == other.message == digest(b"msg_1")


@pytest.mark.parametrize("request_id", [None, "req_1"])
@pytest.mark.parametrize("message_id", [None, 17, ""])
def test_line_without_a_message_id_is_a_message_of_its_own(message_id: Any, request_id: str | None) -> None:
    line = assistant_line(SESSION, request=request_id)
    line["message"]["id"] = message_id
    copy = copy_of(line)
    assert copy.identity == copy.message == digest(line["uuid"].encode(), b"uuid")
    assert not copy.has_request


@pytest.mark.parametrize(
    ("origin", "is_fork"),
    [
        ({"sessionId": "another", "messageUuid": "1"}, True),
        ({"sessionId": SESSION, "messageUuid": "1"}, False),
        ({"messageUuid": "1"}, False),
        ({"sessionId": 5}, False),
        ("another", False),
        (None, False),
    ],
)
def test_line_that_was_copied_from_another_session(origin: Any, is_fork: bool) -> None:
    assert copy_of(assistant_line(SESSION) | {"forkedFrom": origin}).is_fork is is_fork


@pytest.mark.parametrize(
    ("reasons", "ends_turn"),
    [
        (("end_turn",), True),
        (("stop_sequence",), True),
        (("refusal",), True),
        (("tool_use",), False),
        (("pause_turn",), False),
        ((None,), False),
        ((7,), False),
        (("end_turn", None), False),
        (("tool_use", "end_turn"), True),
    ],
)
def test_last_response_of_a_file_may_end_its_turn(claude_dir: Path, reasons: tuple[Any, ...], ends_turn: bool) -> None:
    """A quoted one says nothing about the session's own turn."""
    lines = []
    for number, reason in enumerate(reasons):
        line = assistant_line(SESSION, f"m{number}", tokens=(1, 0, 0, 0))
        line["message"]["stop_reason"] = reason
        lines.append(encoded(line))
    quoted = assistant_line(SESSION, "quoted", tokens=(1, 0, 0, 0), stop=None if ends_turn else "end_turn")
    _, file = taken(claude_dir, *lines, encoded(progress_line(SESSION, "a1", quoted)), encoded({"type": "user"}))
    assert file.ends_turn is ends_turn


@pytest.mark.parametrize(
    ("reason", "is_final"), [("end_turn", True), ("", True), (None, False), (5, False), (["end_turn"], False)]
)
def test_line_with_a_stop_reason_is_final(reason: Any, is_final: bool) -> None:
    line = assistant_line(SESSION)
    line["message"]["stop_reason"] = reason
    assert copy_of(line).is_final is is_final


@pytest.mark.parametrize(("speed", "is_fast"), [("fast", True), ("standard", False), (None, False), (True, False)])
def test_speed(speed: Any, is_fast: bool) -> None:
    assert copy_of(assistant_line(SESSION, speed=speed)).is_fast is is_fast


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
def test_model(given: Any, model: str) -> None:
    assert copy_of(assistant_line(SESSION, model=given)).model == model


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T01:00:01.5+01:00", 1_500_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("yesterday", None),
        ("", None),
        (1795838400000, None),
        (None, None),
        ({}, None),
    ],
)
def test_time(given: Any, at: int | None) -> None:
    assert copy_of(assistant_line(SESSION, at=given)).at == at


def test_time_never_goes_backwards_within_a_file() -> None:
    """A time later than now is now. A line without a time changes nothing."""
    times = ["1970-01-01T00:00:02Z", "1970-01-01T00:00:01Z", None, "1970-01-01T00:00:03Z", "1999-01-01T00:00:00Z"]
    lines = [encoded(assistant_line(SESSION, at=at)) for at in times]
    found = harvest(*lines, now=5_000_000)
    assert [copy.at for copy in found.copies] == [2_000_000, 2_000_000, None, 3_000_000, 5_000_000]
    assert found.latest == 5_000_000
    later = harvest(*lines, now=4_500_000, latest=found.latest)
    assert [copy.at for copy in later.copies] == [5_000_000, 5_000_000, None, 5_000_000, 5_000_000]


@pytest.mark.parametrize(("given", "place"), [(True, SIDECHAIN), (False, OWN), (None, OWN), ("true", OWN), (1, OWN)])
def test_sidechain(given: Any, place: int) -> None:
    assert copy_of(assistant_line(SESSION, sidechain=given)).place == place


def test_progress_quotes_a_line_of_a_sub_agent() -> None:
    """Old versions of Claude Code wrote no other transcript of it. The ids and the time are the quoted line's."""
    quoted = assistant_line(SESSION, "m1", tokens=(1, 2, 3, 4), at="1970-01-01T00:00:01Z", sidechain=True)
    copy = copy_of(progress_line(SESSION, "a1b2", quoted))
    assert (copy.place, copy.agent, size(copy), copy.at) == (QUOTED, "agent-a1b2", 10, 1_000_000)
    original = copy_of(quoted)
    assert (copy.identity, copy.message, copy.has_request) == (original.identity, original.message, True)


def test_progress_without_ids() -> None:
    """The progress record's own uuid and time stand in for those of the quoted line."""
    quoted = assistant_line(SESSION, "m1", request=None)
    del quoted["uuid"], quoted["timestamp"]
    line = progress_line(SESSION, 5, quoted, at="1970-01-01T00:00:01Z")
    copy = copy_of(line)
    assert (copy.identity, copy.agent, copy.at) == (digest(line["uuid"].encode(), b"uuid"), "main-session", 1_000_000)


@pytest.mark.parametrize(
    ("quoted", "skipped"),
    [
        ({"type": "user", "message": {"usage": {"input_tokens": 5}}}, 0),
        ({"type": "user", "message": "usage"}, 0),
        ({"type": "assistant", "message": {"usage": 5}}, 1),
        ({"type": "assistant", "message": {}, "usage": 5}, 0),
        ("usage", 1),
    ],
)
def test_progress_that_quotes_no_usage(quoted: Any, skipped: int) -> None:
    found = harvest(encoded(progress_line(SESSION, "a", quoted)))
    assert (found.copies, found.skipped) == ([], skipped)


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["2.1.96"], "2.1.96"),
        (["2.1.97"], ""),
        (["2.1.100"], ""),
        (["3.0.0"], ""),
        (["2.0.100", "2.1.9", "1.0.128"], "2.1.9"),
        (["2.1.96-beta.1"], "2.1.96"),
        (["new", "", None, 2.0, "2.1", "2." + "9" * 99 + ".1"], ""),
    ],
)
def test_versions_with_placeholder_outputs(versions: list[Any], newest: str) -> None:
    lines = [assistant_line(SESSION, f"m{number}") | {"version": version} for number, version in enumerate(versions)]
    assert harvest(*map(encoded, lines)).placeholders == newest


def test_placeholders_are_lines_of_a_model_that_are_not_final(claude_dir: Path) -> None:
    final = assistant_line(SESSION) | {"version": "2.0.1"}
    final["message"]["stop_reason"] = "end_turn"
    synthetic = assistant_line(SESSION, model="<synthetic>") | {"version": "2.0.1"}
    quoted = progress_line(SESSION, "a", assistant_line(SESSION)) | {"version": "2.0.2"}
    assert harvest(encoded(final), encoded(synthetic)).placeholders == ""
    _, file = taken(claude_dir, encoded(final), encoded(quoted))
    assert file.placeholders == "2.0.2"
    assert harvest(encoded(quoted), placeholders="2.0.3").placeholders == "2.0.3"
    (sentence,) = TranscriptSource([str(claude_dir)]).read(SESSION).losses.placeholders
    assert sentence.startswith(f"{file.path}: Claude Code 2.0.2 ")


def cost_state(**fields: Any) -> dict[str, Any]:
    sums = {"inputTokens": 1, "outputTokens": 20, "cacheReadInputTokens": 300, "cacheCreationInputTokens": 4000}
    models = {
        "claude-opus-4-6": {**sums, "costUSD": 0.5, "thinkingTokens": 9},
        "claude-haiku-4-5": {"inputTokens": 50000},
    }
    return {"type": "cost-state", "sessionId": SESSION, "totalCostUSD": 0.5, "modelUsage": models, **fields}


def test_claude_codes_own_sums(claude_dir: Path) -> None:
    """The last ones of this session count, even if they are lower."""
    one, less = cost_state(), cost_state(modelUsage={"m": {"inputTokens": 3.0, "cacheReadInputTokens": 4}})
    _, file = taken(claude_dir, encoded(one))
    assert (file.stated_billing, file.stated_total) == (50021, 54321)
    found = harvest(encoded(less), stated_billing=50021, stated_total=54321)
    assert (found.stated_billing, found.stated_total) == (3, 7)


@pytest.mark.parametrize(
    "line",
    [
        cost_state(sessionId="another"),
        cost_state(type="cost"),
        cost_state(modelUsage=None),
        cost_state(modelUsage=[]),
        cost_state(modelUsage={"m": 5}),
        cost_state(modelUsage={}),
        {"type": "cost-state", "sessionId": SESSION, "totalCostUSD": 0.25},
        {"type": "user", "x": "cost-state"},
        ["cost-state"],
    ],
)
def test_other_sums_are_ignored(line: Any) -> None:
    found = harvest(encoded(line), encoded(line)[:-3], stated_billing=1, stated_total=2)
    assert (found.stated_billing, found.stated_total, found.copies) == (1, 2, [])
