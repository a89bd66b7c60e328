"""Parsing the lines of a transcript that have usage."""

import re
from hashlib import blake2b

import msgspec

from fluxbudgetd.model import Copy
from fluxbudgetd.sources.values import moment, text, token_counts

# A line without this has no usage, and is not parsed. (Inside a string the quotes would be escaped.)
_HINT = b'"usage"'
_NO_MODEL = "<synthetic>"
_ID_BYTES = 8

# A JSON escape: a pair of surrogates; a lone surrogate, as in an emoji that was cut in half; any other.
_ESCAPE = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)

# Values stay raw and are decoded only if they are scalars, so that no line becomes a tree of objects.
_ABSENT = msgspec.Raw(b"null")
_decode_plain = msgspec.json.Decoder(str | int | float | bool | None).decode


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: msgspec.Raw = _ABSENT
    ephemeral_1h_input_tokens: msgspec.Raw = _ABSENT


class _Usage(msgspec.Struct, gc=False):
    input_tokens: msgspec.Raw = _ABSENT
    output_tokens: msgspec.Raw = _ABSENT
    cache_read_input_tokens: msgspec.Raw = _ABSENT
    cache_creation_input_tokens: msgspec.Raw = _ABSENT
    cache_creation: msgspec.Raw = _ABSENT


class _Message(msgspec.Struct, gc=False):
    id: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT
    usage: _Usage | msgspec.UnsetType = msgspec.UNSET


class _Line(msgspec.Struct, gc=False, rename="camel"):
    type: msgspec.Raw = _ABSENT
    message: _Message | msgspec.UnsetType = msgspec.UNSET
    uuid: msgspec.Raw = _ABSENT
    request_id: msgspec.Raw = _ABSENT
    timestamp: msgspec.Raw = _ABSENT
    is_sidechain: msgspec.Raw = _ABSENT


class _Kind(msgspec.Struct, gc=False):
    type: msgspec.Raw = _ABSENT


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_cache_creation = msgspec.json.Decoder(_CacheCreation).decode


class Harvest:
    """The copies in one file's lines, and how many lines were unreadable and how many counts invalid."""

    def __init__(self, file: int, agent: str) -> None:
        self.file = file
        self.agent = agent
        self.copies: list[Copy] = []
        self.skipped = 0
        self.anomalies = 0

    def add(self, line: bytes, offset: int) -> None:
        """Add the line that begins at an offset; never raises because of its content."""
        if _HINT not in line:
            return
        try:
            parsed = _decode(line)
            if parsed is not None and parsed.message and parsed.message.usage:
                self._add(parsed, parsed.message, parsed.message.usage, offset)
        except (ValueError, RecursionError):  # raised by msgspec and by UTF-8 decoding
            self.skipped += 1

    def _add(self, line: _Line, message: _Message, usage: _Usage, offset: int) -> None:
        counts, invalid = _counts(usage)
        self.anomalies += invalid
        name = _name(message.id)
        if name is None:
            name = _name(line.uuid, b"uuid")
        if name is None:
            name = _digest(b"%d:%d" % (self.file, offset), b"place")
        model = _string(message.model)
        self.copies.append(
            Copy(
                name,
                _digest(name.to_bytes(_ID_BYTES) + _string(line.request_id).encode(), b"request"),
                _plain(line.is_sidechain) is True,
                self.file,
                moment(_plain(line.timestamp)),
                self.agent,
                "" if model == _NO_MODEL else text(model),
                *counts,
            )
        )


def _decode(line: bytes) -> _Line | None:
    """Return an assistant's line, or None for any other line, valid or not. Raises `ValueError`."""
    try:
        parsed = _decode_line(line)
    except msgspec.ValidationError:
        if not _is_assistants(_decode_kind(line).type):
            return None
        raise
    except msgspec.DecodeError:
        mended = _ESCAPE.sub(_mend, line)
        if mended == line:
            raise
        return _decode(mended)
    if not _is_assistants(parsed.type):
        return None
    if not line.isascii():
        line.decode()  # msgspec does not check the UTF-8 of what it skips
    return parsed


def _is_assistants(kind: msgspec.Raw) -> bool:
    return _plain(kind) == "assistant"


def _mend(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape[2] else escape[0]


def _counts(usage: _Usage) -> tuple[list[int], int]:
    """Return input, output, cache reads and cache creation, and how many values were invalid."""
    named = (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens)
    creation = _cache_creation(usage)
    counts, invalid = token_counts(_plain(value) for value in (*named, *creation))
    # The sum may exceed `MAX_TOKENS` even if no part does.
    summed, too_large = token_counts((sum(counts[len(named) :]),))
    return [*counts[: len(named)], *summed], invalid + too_large


def _cache_creation(usage: _Usage) -> list[msgspec.Raw]:
    """Return the cache-creation counts to add: one per lifetime if broken down, otherwise the total."""
    try:
        parts = _decode_cache_creation(usage.cache_creation)
    except msgspec.ValidationError:
        return [usage.cache_creation_input_tokens]
    by_lifetime = (parts.ephemeral_5m_input_tokens, parts.ephemeral_1h_input_tokens)
    present = [value for value in by_lifetime if _plain(value) is not None]
    return present or [usage.cache_creation_input_tokens]


def _plain(raw: msgspec.Raw) -> object:
    """Return a string, number, boolean or null decoded, and anything else raw."""
    try:
        return _decode_plain(raw)
    except msgspec.ValidationError:
        return raw


def _string(raw: msgspec.Raw) -> str:
    value = _plain(raw)
    return value if isinstance(value, str) else ""


def _name(raw: msgspec.Raw, kind: bytes = b"") -> int | None:
    value = _string(raw)
    return _digest(value.encode(), kind) if value else None


def _digest(raw: bytes, kind: bytes = b"") -> int:
    return int.from_bytes(blake2b(raw, digest_size=_ID_BYTES, person=kind).digest()) >> 1
