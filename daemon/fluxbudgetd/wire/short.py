"""Counts of tokens for lines that have little room: one rule for the daemon's texts and for the client's."""

_UNITS = "kMGTPE"
# Three digits say enough.
_DIGITS = 3


def short(count: int) -> str:
    """Return a count in at most three digits, rounded down: `999`, `1.8k`, `12.3k`, `208k`, `2M`; below 0 it is `0`.

    That is at most five characters for what fits into 64 bits.
    """
    digits = str(max(count, 0))
    power = min((len(digits) - 1) // 3, len(_UNITS))
    if power < 1:
        return digits
    whole, tenth = digits[: -3 * power], digits[-3 * power]
    decimals = f".{tenth}" if len(whole) < _DIGITS and tenth != "0" else ""
    return f"{whole}{decimals}{_UNITS[power - 1]}"
