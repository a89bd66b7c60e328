"""Values, keys and paths in messages: one short line, without control characters."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fluxbudgetd.wire.text import one_line, shown_path

_MOST = 60
_MOST_BITS = 190  # just below 58 decimal digits
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Dialect(NamedTuple):
    """A file format's words for its kinds of values."""

    text: str
    mapping: str
    sequence: str
    nothing: str


def shown(value: object, dialect: Dialect) -> str:
    """Return a value in at most 60 characters. Maps and lists are named, not written out."""
    if isinstance(value, str):
        return f'"{shortened(one_line(value[: _MOST + 1]), _MOST - 2)}"'
    if isinstance(value, bool) or value is None:
        return dialect.nothing if value is None else str(value).lower()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a number of more than {_MOST - 3} digits"
    if isinstance(value, Mapping):
        return dialect.mapping
    if isinstance(value, Sequence):
        return dialect.sequence
    return shortened(one_line(str(value)))


def shown_key(keys: Sequence[str | int]) -> str:
    """Return a key as it is written: `runs.warn_pct`, `warnings.thresholds[2]`, `phases.estimates."a b"`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            text += f".{shortened(key)}"
        else:
            text += f'."{shortened(one_line(key[: _MOST + 1]), _MOST - 2)}"'
    return text.removeprefix(".")


def shown_file(path: str) -> str:
    """Return a path as one line."""
    return one_line(shown_path(path))


def shortened(text: str, most: int = _MOST) -> str:
    """Return a text truncated to `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
