"""The beginning of a JSON object or array: the fields or items that are there, wherever the input was cut."""

import json
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # public, but without types

_SPACE = " \t\n\r"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def top_level(raw: bytes) -> Iterator[tuple[str, str]]:
    """Yield each field's name and its value as JSON text. Where the input was cut, the last value is incomplete."""
    text = raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "ignore")
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    try:
        while text[at : at + 1] in ("{", ","):
            at = _skip(text, at + 1)
            if text[at : at + 1] != '"':
                return
            name, at = scanstring(text, at + 1, False)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                return
            start = _skip(text, at + 1)
            end = _end(decoder, text, start)
            yield name, text[start:end]
            if end is None:
                return
            at = _skip(text, end)
    except ValueError:  # the input was cut inside a name
        return


def items(text: str) -> Iterator[str]:
    """Yield the items of an array as JSON text. Where the input was cut, the last one is incomplete."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    while text[at : at + 1] in ("[", ","):
        start = _skip(text, at + 1)
        end = _end(decoder, text, start)
        yield text[start:end]
        if end is None:
            return
        at = _skip(text, end)


def _end(decoder: json.JSONDecoder, text: str, start: int) -> int | None:
    """Return where a value ends; None if it is not complete."""
    try:
        return decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at
