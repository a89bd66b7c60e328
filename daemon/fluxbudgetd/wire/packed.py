"""A small MessagePack codec for the Python client's pipe.

Importing msgspec takes a Python client about 20 ms, twice as long as everything else, on every tool call. This module
is slower than msgspec but much faster to import. It writes the types that a `command` request uses, and reads all types
that an answer may use, now or in a later version. All other requests use `messages`.
"""

TYPE_CHECKING = False  # typing costs 3 ms to import; type checkers know this name
if TYPE_CHECKING:
    from typing import NoReturn

#: Deeper nesting is refused; the deepest answer has five levels.
_DEEPEST = 32

Value = None | bool | int | float | str | bytes | list["Value"] | dict[str, "Value"]


class PackedError(ValueError):
    """The bytes are not one MessagePack value of the kinds that this protocol uses."""


def pack(value: Value) -> bytes:
    """Return the MessagePack encoding of nil, booleans, text, bytes, lists, maps and counts (integers from 0)."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return bytes((value,)) if value < 128 else b"\xcf" + value.to_bytes(8, "big")
    if isinstance(value, str):
        raw = value.encode()
        return _head(len(raw), 0xA0, 32, 0xDA) + raw
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, 0xC5) + value
    if isinstance(value, list):
        return _head(len(value), 0x90, 16, 0xDC) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = (pack(key) + pack(item) for key, item in value.items())
        return _head(len(value), 0x80, 16, 0xDE) + b"".join(items)
    raise PackedError(f"a {type(value).__name__} cannot be sent")


def unpack(data: bytes) -> Value:
    """Return the value that these bytes encode; raise `PackedError` if they are not exactly one value."""
    try:
        value, end = _read(data, 0, 0)
    except (IndexError, UnicodeDecodeError) as exc:
        raise PackedError("truncated or damaged MessagePack") from exc
    if end != len(data):
        raise PackedError("bytes follow the MessagePack value")
    return value


def _head(size: int, fixed: int, below: int, longer: int) -> bytes:
    """Return the type and the size: in one byte if it is `below` a limit, else in two or four more."""
    if size < below:
        return bytes((fixed | size,))
    if size < 1 << 16:
        return bytes((longer,)) + size.to_bytes(2, "big")
    return bytes((longer + 1,)) + size.to_bytes(4, "big")


def _read(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind >= 0xE0:
        return kind - 256, at
    if kind < 0x90:
        return _read_map(data, at, kind & 15, depth)
    if kind < 0xA0:
        return _read_array(data, at, kind & 15, depth)
    if kind < 0xC0:
        return _read_text(data, at, kind & 31)
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at
    return _read_sized(data, at, kind, depth)


def _read_sized(data: bytes, at: int, kind: int, depth: int) -> tuple[Value, int]:
    if kind not in _SIZES:
        _unsupported(kind)
    what, width = _SIZES[kind]
    part = _slice(data, at, width)
    at += width
    if what == "float":
        from struct import unpack as unpack_struct  # noqa: PLC0415  answers have none so far

        return float(unpack_struct(">d", part)[0]), at
    number = int.from_bytes(part, "big", signed=what == "signed")
    if what == "bytes":
        return _slice(data, at, number), at + number
    if what == "text":
        return _read_text(data, at, number)
    if what == "array":
        return _read_array(data, at, number, depth)
    if what == "map":
        return _read_map(data, at, number, depth)
    return number, at


def _read_text(data: bytes, at: int, size: int) -> tuple[str, int]:
    return _slice(data, at, size).decode(), at + size


def _read_array(data: bytes, at: int, size: int, depth: int) -> tuple[Value, int]:
    _go_down(depth)
    items: list[Value] = []
    for _ in range(size):
        item, at = _read(data, at, depth + 1)
        items.append(item)
    return items, at


def _read_map(data: bytes, at: int, size: int, depth: int) -> tuple[Value, int]:
    _go_down(depth)
    result: dict[str, Value] = {}
    for _ in range(size):
        key, at = _read(data, at, depth + 1)
        if not isinstance(key, str):
            raise PackedError("a map's key is not text")
        result[key], at = _read(data, at, depth + 1)
    return result, at


def _go_down(depth: int) -> None:
    if depth >= _DEEPEST:
        raise PackedError("nested too deeply")


def _slice(data: bytes, at: int, size: int) -> bytes:
    part = data[at : at + size]
    if len(part) != size:
        raise IndexError(at)
    return part


def _unsupported(kind: int) -> "NoReturn":
    raise PackedError(f"MessagePack type 0x{kind:02x} is not part of this protocol")


_CONSTANTS: dict[int, Value] = {0xC0: None, 0xC2: False, 0xC3: True}
_SIZES = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xCB: ("float", 8),
    0xCC: ("unsigned", 1),
    0xCD: ("unsigned", 2),
    0xCE: ("unsigned", 4),
    0xCF: ("unsigned", 8),
    0xD0: ("signed", 1),
    0xD1: ("signed", 2),
    0xD2: ("signed", 4),
    0xD3: ("signed", 8),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xDC: ("array", 2),
    0xDD: ("array", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
