"""Bytes from other programs as text without loss, and text that is safe on a terminal.

Session ids, agent names and bead ids come from databases and command lines, whose encoding is unknown. Inside
fluxbudget they are ordinary `str`, fit for MessagePack, JSON and a terminal. A byte that is not part of valid UTF-8
becomes the private-use character U+EF00 + byte (U+EF80 … U+EFFF, the range that MirBSD's OPTU encoding uses for the
same purpose). Text that itself contains such a character has that character's bytes folded too, so that
`unfold(fold(raw)) == raw` for every `raw`, and two different byte strings never become one id.
"""

_BASE = 0xEF00
_FIRST = chr(_BASE + 0x80)
_LAST = chr(_BASE + 0xFF)


def fold(raw: bytes) -> str:
    """Return the text that represents these bytes."""
    if raw.isascii():
        return raw.decode("ascii")
    text = raw.decode("utf-8", "surrogateescape")
    return "".join(map(_fold_character, text))


def shown_path(path: str) -> str:
    """Return an operating system path as text that can be sent and shown."""
    return path if path.isascii() else fold(path.encode("utf-8", "surrogateescape"))


def unfold(text: str) -> bytes:
    """Return the bytes that a text from `fold` represents."""
    if text.isascii():
        return text.encode("ascii")
    parts = (chr(0xDC00 + ord(c) - _BASE) if _FIRST <= c <= _LAST else c for c in text)
    return "".join(parts).encode("utf-8", "surrogateescape")


def one_line(text: str) -> str:
    r"""Return text that is safe on a terminal: characters that could move the cursor or end the line are escaped.

    A folded byte that is not UTF-8 becomes `\xff`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if _FIRST <= character <= _LAST:
        return f"\\x{ord(character) - _BASE:02x}"
    return character.encode("unicode_escape").decode()


def _fold_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return chr(_BASE + ord(character) - 0xDC00)
    if _FIRST <= character <= _LAST:
        return "".join(chr(_BASE + byte) for byte in character.encode("utf-8"))
    return character
