"""What Claude Code gives to hooks and to the status line's command: JSON, of which only names and ids are looked at.

Nothing in it is relied on: a field that is missing, of another type or new is no error, what is not JSON is nothing.
"""

import json
from json.decoder import scanstring  # type: ignore[attr-defined]  # public, but without types

import msgspec

from fluxbudgetd.wire.text import fold

_LONGEST_ID = 512
_LONGEST_PATH = 4096
_NOTHING = msgspec.Raw(b"null")
_SPACE = " \t\n\r"


class _Fields(msgspec.Struct):
    """The fields that are looked at, unread; what else there is is passed over without being made into anything."""

    session_id: msgspec.Raw = _NOTHING
    transcript_path: msgspec.Raw = _NOTHING
    cwd: msgspec.Raw = _NOTHING
    hook_event_name: msgspec.Raw = _NOTHING
    tool_name: msgspec.Raw = _NOTHING
    tool_input: msgspec.Raw = _NOTHING
    agent_id: msgspec.Raw = _NOTHING
    agent_type: msgspec.Raw = _NOTHING
    tool_use_id: msgspec.Raw = _NOTHING
    source: msgspec.Raw = _NOTHING


class _ToolInput(msgspec.Struct):
    subagent_type: msgspec.Raw = _NOTHING


class HookInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a hook was called for. Text that is too long to be what it should be is None."""

    event: str | None = None
    session: str | None = None
    transcript: str | None = None
    cwd: str | None = None
    tool: str | None = None
    subagent_type: str | None = None
    agent_id: str | None = None
    agent_type: str | None = None
    call: str | None = None
    """Which call of a tool it is about."""
    source: str | None = None
    """Why a session starts: `startup`, `resume`, `clear`, `compact`."""


_fields = msgspec.json.Decoder(_Fields)
_tool_input = msgspec.json.Decoder(_ToolInput)
_text_decoder = msgspec.json.Decoder(str)


def parse(raw: bytes) -> HookInput | None:
    """Return what an input says, at once; None when there is something odd about it, which `parse_odd` looks into."""
    try:
        return _made(_fields.decode(raw))
    except (msgspec.DecodeError, RecursionError):
        return None


def parse_odd(raw: bytes) -> HookInput:
    """Return what an odd input says; of what is not JSON, nothing. It may take milliseconds.

    JavaScript writes half a surrogate pair when it cuts a text in the middle of a character, wherever that may be.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return HookInput()
    if not isinstance(found, dict):
        return HookInput()
    names = [name for name in _Fields.__struct_fields__ if name in found]
    return _made(_Fields(**{name: msgspec.Raw(json.dumps(found[name]).encode()) for name in names}))


def parse_beginning(raw: bytes) -> HookInput:
    """Return what the beginning of an input says: the fields that stand there whole. It may take milliseconds."""
    found: dict[str, msgspec.Raw] = {}
    text = raw.decode("utf-8", "ignore")
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    try:
        while text[at : at + 1] in ("{", ","):
            at = _skip(text, at + 1)
            if text[at : at + 1] != '"':
                break
            key, at = scanstring(text, at + 1, False)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                break
            start = _skip(text, at + 1)
            _, at = decoder.raw_decode(text, start)
            if key in _Fields.__struct_fields__:
                found[key] = msgspec.Raw(text[start:at].encode())
            at = _skip(text, at)
    except (ValueError, RecursionError):
        pass  # here it was cut
    return _made(_Fields(**found))


def _made(fields: _Fields) -> HookInput:
    return HookInput(
        event=_text(fields.hook_event_name, _LONGEST_ID),
        session=_text(fields.session_id, _LONGEST_ID),
        transcript=_text(fields.transcript_path, _LONGEST_PATH),
        cwd=_text(fields.cwd, _LONGEST_PATH),
        tool=_text(fields.tool_name, _LONGEST_ID),
        subagent_type=_subagent_type(fields.tool_input),
        agent_id=_text(fields.agent_id, _LONGEST_ID),
        agent_type=_text(fields.agent_type, _LONGEST_ID),
        call=_text(fields.tool_use_id, _LONGEST_ID),
        source=_text(fields.source, _LONGEST_ID),
    )


def _subagent_type(raw: msgspec.Raw) -> str | None:
    try:
        return _text(_tool_input.decode(raw).subagent_type, _LONGEST_ID)
    except (msgspec.DecodeError, RecursionError):
        return _leniently(raw)


def _leniently(raw: msgspec.Raw) -> str | None:
    try:
        found = json.loads(bytes(raw))
        return _text(msgspec.Raw(json.dumps(found.get("subagent_type")).encode()), _LONGEST_ID)
    except (ValueError, RecursionError, AttributeError):
        return None


def _text(raw: msgspec.Raw, longest: int) -> str | None:
    """Return a field's text; None when it is none, empty, or longer than it can be."""
    try:
        text = fold(_text_decoder.decode(raw).encode())
    except (msgspec.DecodeError, UnicodeError):
        return None
    return text if 0 < len(text) <= longest else None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
