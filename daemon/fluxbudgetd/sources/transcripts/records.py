"""The records of a transcript: one JSON object on each line.

Values stay raw and are decoded only if they are scalars, so that no line becomes a tree of objects.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec

#: A record without this has no usage. (Inside a string the quotes would be escaped.)
USAGE = b'"usage"'
#: The types of the records that are read.
ASSISTANT = "assistant"
PROGRESS = "progress"
COST_STATE = "cost-state"
_TYPES = frozenset({ASSISTANT, PROGRESS, COST_STATE})

# A JSON escape of a surrogate, which is half of a character. JavaScript writes a lone one for what is left of an emoji
# that was cut in two.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UP_TO_LONE_SURROGATE = re.compile(
    rb"((?:[^\\]++|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?!u[dD][89a-fA-F]).)*+)"
    rb"(\\u[dD][89a-fA-F][0-9a-fA-F]{2})?",
    re.DOTALL,
)
_MOST_LONE_SURROGATES = 10_000

#: The value of a field that is missing.
ABSENT = msgspec.Raw(b"null")

_T = TypeVar("_T")
_decode_plain = msgspec.json.Decoder(str | int | float | bool | None).decode


class UsageFields(msgspec.Struct, gc=False):
    """A `usage`: a response's, or an iteration's."""

    input_tokens: msgspec.Raw = ABSENT
    output_tokens: msgspec.Raw = ABSENT
    cache_read_input_tokens: msgspec.Raw = ABSENT
    cache_creation_input_tokens: msgspec.Raw = ABSENT
    cache_creation: msgspec.Raw = ABSENT
    speed: msgspec.Raw = ABSENT
    iterations: msgspec.Raw = ABSENT


class Message(msgspec.Struct, gc=False):
    """A response, or one content block of it."""

    id: msgspec.Raw = ABSENT
    model: msgspec.Raw = ABSENT
    stop_reason: msgspec.Raw = ABSENT
    usage: UsageFields | msgspec.UnsetType = msgspec.UNSET


class Record(msgspec.Struct, gc=False, rename="camel"):
    """A record of one of the types that are read.

    `data` is what a progress record reports, `forked_from` says what the record is a copy of, and `model_usage` is that
    of a record of Claude Code's own sums.
    """

    type: msgspec.Raw = ABSENT
    message: Message | msgspec.UnsetType = msgspec.UNSET
    data: msgspec.Raw = ABSENT
    uuid: msgspec.Raw = ABSENT
    request_id: msgspec.Raw = ABSENT
    timestamp: msgspec.Raw = ABSENT
    is_sidechain: msgspec.Raw = ABSENT
    session_id: msgspec.Raw = ABSENT
    forked_from: msgspec.Raw = ABSENT
    version: msgspec.Raw = ABSENT
    model_usage: msgspec.Raw = ABSENT


class AgentProgress(msgspec.Struct, gc=False, rename="camel"):
    """The `data` of a sub-agent's progress. `message` is a record of the sub-agent's own conversation."""

    agent_id: msgspec.Raw = ABSENT
    message: msgspec.Raw = ABSENT


class _Origin(msgspec.Struct, gc=False, rename="camel"):
    session_id: msgspec.Raw = ABSENT


class _Kind(msgspec.Struct, gc=False):
    type: msgspec.Raw = ABSENT


_decode_record = msgspec.json.Decoder(Record).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_progress = msgspec.json.Decoder(AgentProgress).decode
_decode_origin = msgspec.json.Decoder(_Origin).decode


def read_record(line: bytes) -> Record | None:
    """Return a record if it has one of the types that are read, otherwise None, whether or not it is valid.

    Raises `ValueError` or `RecursionError` if the line is not a record.
    """
    try:
        found = _mending(_decode_record, line)
    except msgspec.ValidationError:
        if string(_mending(_decode_kind, line).type) not in _TYPES:
            return None
        raise
    return found if string(found.type) in _TYPES else None


def agent_progress(record: Record) -> AgentProgress | None:
    """Return the progress of a sub-agent; None for any other. Raises `ValueError` if it is invalid."""
    try:
        kind = _decode_kind(record.data)
    except msgspec.ValidationError:
        return None
    return _decode_progress(record.data) if string(kind.type) == "agent_progress" else None


def origin(record: Record) -> str:
    """Return the id of the session that a record was copied from; empty if it was not."""
    try:
        return string(_decode_origin(record.forked_from).session_id)
    except msgspec.ValidationError:
        return ""


def plain(raw: msgspec.Raw) -> object:
    """Return a string, number, boolean or null decoded, and anything else raw."""
    try:
        return _decode_plain(raw)
    except msgspec.ValidationError:
        return raw


def string(raw: msgspec.Raw) -> str:
    """Return a string, or an empty one for any other value."""
    value = plain(raw)
    return value if isinstance(value, str) else ""


def _mending(decode: Callable[[bytes], _T], line: bytes) -> _T:
    """Decode a line, with U+FFFD in place of lone surrogates, which msgspec rejects."""
    try:
        return decode(line)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if _SURROGATE.search(line) is None:
            raise
    return decode(_UP_TO_LONE_SURROGATE.sub(_replace_lone_surrogate, line, count=_MOST_LONE_SURROGATES))


def _replace_lone_surrogate(found: re.Match[bytes]) -> bytes:
    return found[1] + (rb"\ufffd" if found[2] else b"")
