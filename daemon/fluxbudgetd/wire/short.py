"""Token counts as a person reads them, for the daemon and the client."""

_UNITS = "kMGTPE"
_DIGITS = 3


def grouped(count: int) -> str:
    """Return a count with its digits in groups of three: `208 500`."""
    return f"{count:,}".replace(",", " ")


def short(count: int) -> str:
    """Return a count in at most three digits, rounded down: `999`, `1.8k`, `12.3k`, `208k`, `2M`; below 0 it is `0`.

    A 64-bit count takes at most five characters.
    """
    digits = str(max(count, 0))
    power = min((len(digits) - 1) // 3, len(_UNITS))
    if power < 1:
        return digits
    whole, tenth = digits[: -3 * power], digits[-3 * power]
    decimals = f".{tenth}" if len(whole) < _DIGITS and tenth != "0" else ""
    return f"{whole}{decimals}{_UNITS[power - 1]}"
