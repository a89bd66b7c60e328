"""What the end of a transcript shows. Claude Code writes a line some milliseconds after it has called a hook."""

import os
from collections.abc import Iterator

import msgspec

from fluxbudgetd.sources.transcripts.files import opened

_BYTES = 256 << 10


class _Message(msgspec.Struct):
    stop_reason: str | None = None


class _Line(msgspec.Struct):
    type: str = ""
    message: _Message | None = None


_decode = msgspec.json.Decoder(_Line).decode


def has_call(path: str, call: str) -> bool:
    """Return True if a line of a tool call with this id was written lately; raises `OSError`."""
    needle = call.encode()
    return any(needle in line for line in _last_lines(path))


def has_final_message(path: str) -> bool:
    """Return True if the last message is one that ends a turn; raises `OSError`."""
    for raw in _last_lines(path):
        try:
            line = _decode(raw)
        except (ValueError, RecursionError):
            continue
        if line.type in ("assistant", "user"):
            reason = line.message.stop_reason if line.message is not None else None
            return line.type == "assistant" and reason not in (None, "tool_use")
    return False


def _last_lines(path: str) -> Iterator[bytes]:
    """Yield the complete lines at the end of a file, the last one first."""
    with opened(path) as (fd, info):
        raw = os.pread(fd, _BYTES, max(0, info.st_size - _BYTES))
    yield from reversed(raw.split(b"\n")[:-1])
