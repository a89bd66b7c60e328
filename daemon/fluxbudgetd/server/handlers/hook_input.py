"""The JSON that Claude Code passes to hooks and to the status line's command. Only names and ids in it are read.

Of a prompt, only the first characters are compared, and nothing is kept. A missing field, or one of another type, is
None. Input that is not a JSON object counts as an empty one.
"""

import json

import anyio.to_thread
import msgspec
from msgspec import Raw, field

from fluxbudgetd.wire.json_start import BYTE_ORDER_MARK, items, top_level
from fluxbudgetd.wire.stops import NOTIFICATION
from fluxbudgetd.wire.text import fold

_LONGEST_ID = 512
_LONGEST_PATH = 4096
_ABSENT = Raw(b"null")
_NOTIFICATION = f'"{NOTIFICATION}'.encode()


class _Fields(msgspec.Struct):
    """The fields that are read, still encoded. The decoder skips all others without creating objects."""

    session: Raw = field(default=_ABSENT, name="session_id")
    transcript: Raw = field(default=_ABSENT, name="transcript_path")
    cwd: Raw = _ABSENT
    event: Raw = field(default=_ABSENT, name="hook_event_name")
    tool: Raw = field(default=_ABSENT, name="tool_name")
    tool_input: Raw = _ABSENT
    agent_id: Raw = _ABSENT
    agent_type: Raw = _ABSENT
    call: Raw = field(default=_ABSENT, name="tool_use_id")
    source: Raw = _ABSENT
    reason: Raw = _ABSENT
    permission_mode: Raw = _ABSENT
    error: Raw = _ABSENT
    prompt: Raw = _ABSENT
    tool_calls: Raw = _ABSENT
    background: Raw = field(default=_ABSENT, name="background_tasks")


class _ToolInput(msgspec.Struct):
    subagent_type: Raw = _ABSENT
    model: Raw = _ABSENT
    to: Raw = _ABSENT


class _ToolCall(msgspec.Struct):
    id: Raw = field(default=_ABSENT, name="tool_use_id")


class _Task(msgspec.Struct):
    id: Raw = _ABSENT


class HookInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a hook was called for. A text that is too long is None."""

    event: str | None = None
    session: str | None = None
    transcript: str | None = None
    cwd: str | None = None
    tool: str | None = None
    subagent_type: str | None = None
    subagent_model: str | None = None
    """The model that a sub-agent is launched with, mostly an alias such as `opus`; None: that of the session."""
    agent_id: str | None = None
    agent_type: str | None = None
    call: str | None = None
    """The id of the tool call."""
    source: str | None = None
    """Why a session starts: `startup`, `resume`, `clear`, `compact`, `fork`."""
    reason: str | None = None
    """Why a session ends: `clear`, `resume`, `prompt_input_exit`, `other`."""
    permission_mode: str | None = None
    error: str | None = None
    """The kind of error that ended a turn."""
    is_notification: bool = False
    """True if the prompt reports the end of a background task."""
    calls: tuple[str, ...] = ()
    """The ids of the tool calls of a batch."""
    to: str | None = None
    """The sub-agent that a message is for, by its id or name."""
    background: frozenset[str] | None = None
    """The ids of the tasks that run in the background when a turn ends; None: not reported."""


_PATHS = frozenset({"transcript", "cwd"})
#: Fields that are not texts, or that are not read as a whole.
_OTHERS = frozenset({"tool_input", "prompt", "tool_calls", "background"})
#: name in the JSON → our name
_NAMES = {info.encode_name: info.name for info in msgspec.structs.fields(_Fields)}
_fields = msgspec.json.Decoder(_Fields)
_tool_input = msgspec.json.Decoder(_ToolInput)
_tool_calls = msgspec.json.Decoder(list[_ToolCall])
_tasks = msgspec.json.Decoder(list[_Task])
_text_decoder = msgspec.json.Decoder(str)


def parse(raw: bytes) -> HookInput | None:
    """Return what the input says; None if it is unusual, which `parsed_slowly` handles."""
    if not raw:
        return HookInput()
    try:
        return _from_fields(_fields.decode(raw.removeprefix(BYTE_ORDER_MARK)))
    except (msgspec.DecodeError, RecursionError):
        return None


async def parsed_slowly(raw: bytes, *, whole: bool) -> HookInput:
    """Return what an unusual input says, or the beginning of an input; it is parsed in a thread."""
    parser = parse_unusual if whole else parse_beginning
    return await anyio.to_thread.run_sync(parser, raw, abandon_on_cancel=True)


def is_json(raw: bytes) -> bool:
    """Return True if this is a JSON value, however unusual. May take milliseconds."""
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def parse_unusual(raw: bytes) -> HookInput:
    """Return what an unusual input says; nothing if it is not a JSON object. May take milliseconds.

    JavaScript writes half a surrogate pair if it cuts a text in the middle of a character; msgspec refuses that.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return HookInput()
    if not isinstance(found, dict):
        return HookInput()
    known = {_NAMES[name]: Raw(json.dumps(value).encode()) for name, value in found.items() if name in _NAMES}
    return _from_fields(_Fields(**known))


def parse_beginning(raw: bytes) -> HookInput:
    """Return what the beginning of an input says: the fields that are complete. May take milliseconds."""
    found = {_NAMES[name]: Raw(value.encode()) for name, value in top_level(raw) if name in _NAMES}
    if "tool_calls" in found:  # the results of a batch may be long
        found["tool_calls"] = _known_calls(bytes(found["tool_calls"]).decode())
    return _from_fields(_Fields(**found))


def _known_calls(text: str) -> Raw:
    """Return the tool calls of a batch that may have been cut, with only the fields that are complete."""
    calls = [dict(top_level(item.encode())) for item in items(text)]
    ids = [_text(Raw(call.get("tool_use_id", "").encode()), _LONGEST_ID) for call in calls]
    return _raw([{"tool_use_id": each} for each in ids if each is not None])


def _from_fields(fields: _Fields) -> HookInput:
    texts = {
        name: _text(getattr(fields, name), _LONGEST_PATH if name in _PATHS else _LONGEST_ID)
        for name in _Fields.__struct_fields__
        if name not in _OTHERS
    }
    tool_input = _read_tool_input(fields.tool_input)
    background = _identified(fields.background, _tasks, "id")
    return HookInput(
        **texts,
        subagent_type=_text(tool_input.subagent_type, _LONGEST_ID),
        subagent_model=_text(tool_input.model, _LONGEST_ID),
        to=_text(tool_input.to, _LONGEST_ID),
        is_notification=bytes(memoryview(fields.prompt)[: len(_NOTIFICATION)]) == _NOTIFICATION,
        calls=tuple(_identified(fields.tool_calls, _tool_calls, "tool_use_id") or ()),
        background=None if background is None else frozenset(background),
    )


def _read_tool_input(raw: Raw) -> _ToolInput:
    try:
        return _tool_input.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        found = _unusual(raw)
    if not isinstance(found, dict):
        return _ToolInput()
    return _ToolInput(**{name: _raw(found.get(name)) for name in _ToolInput.__struct_fields__})


def _identified(
    raw: Raw, decoder: "msgspec.json.Decoder[list[_ToolCall]] | msgspec.json.Decoder[list[_Task]]", key: str
) -> list[str] | None:
    """Return the ids of what a field lists, each under `key`; None if it is not a list."""
    if raw is _ABSENT:
        return None
    try:
        ids = [each.id for each in decoder.decode(raw)]
    except (msgspec.DecodeError, RecursionError):
        found = _unusual(raw)
        if not isinstance(found, list):
            return None
        ids = [_raw(each.get(key)) for each in found if isinstance(each, dict)]
    return [text for each in ids if (text := _text(each, _LONGEST_ID)) is not None]


def _unusual(raw: Raw) -> object:
    """Return a value that msgspec refuses; None if it is not JSON."""
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError):
        return None


def _raw(value: object) -> Raw:
    return Raw(json.dumps(value).encode())


def _text(raw: Raw, longest: int) -> str | None:
    """Return a field's text; None if it is not text, is empty, or is longer than allowed."""
    try:
        text = fold(_text_decoder.decode(raw).encode())
    except (msgspec.DecodeError, UnicodeError):
        return None
    return text if 0 < len(text) <= longest else None
