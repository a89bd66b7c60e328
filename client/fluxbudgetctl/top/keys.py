"""Translates what a terminal sends into names of keys. No I/O: feed bytes, get names."""

_ESCAPE = 0x1B
#: What follows the escape at the start of a sequence: CSI and SS3.
_OPENERS = b"[O"
_FINAL = range(0x40, 0x7F)
_SEQUENCES = {
    b"[A": "up",
    b"OA": "up",
    b"[B": "down",
    b"OB": "down",
    b"[5~": "page up",
    b"[6~": "page down",
    b"[H": "home",
    b"OH": "home",
    b"[1~": "home",
    b"[F": "end",
    b"OF": "end",
    b"[4~": "end",
}
_PLAIN = {
    ord("q"): "quit",
    ord("Q"): "quit",
    ord("k"): "up",
    ord("j"): "down",
    ord("g"): "home",
    ord("G"): "end",
    ord("r"): "refresh",
    0x0C: "refresh",
}


class Keys:
    """Names keys. An escape is a key or the start of a sequence; if nothing follows it, call `end_of_sequence`."""

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_pending(self) -> bool:
        """True if the start of a sequence has arrived, but not its end."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[str]:
        """Return the names of the keys that are complete now; unknown keys are skipped."""
        self._rest += data
        found = []
        while self._rest:
            length, name = self._first()
            if not length:
                break
            self._rest = self._rest[length:]
            if name:
                found.append(name)
        return found

    def end_of_sequence(self) -> list[str]:
        """Return what the bytes so far mean if nothing follows them."""
        rest, self._rest = self._rest, b""
        return ["quit"] if rest == bytes([_ESCAPE]) else []

    def _first(self) -> tuple[int, str]:
        """Return the length and the name of the first key; a length of 0 means that it is incomplete."""
        rest = self._rest
        if rest[0] != _ESCAPE:
            return 1, _PLAIN.get(rest[0], "")
        if len(rest) == 1:
            return 0, ""
        if rest[1] not in _OPENERS:
            return 2, "quit" if rest[1] == _ESCAPE else ""  # Alt and a key
        for end in range(2, len(rest)):
            if rest[end] in _FINAL:
                return end + 1, _SEQUENCES.get(rest[1 : end + 1], "")
        return 0, ""
