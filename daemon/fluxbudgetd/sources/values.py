"""Converting foreign values to our own: nothing in a row or a line is trusted."""

from collections.abc import Iterable
from datetime import datetime

from fluxbudgetd.model import to_micros
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.wire.messages import MAX_TOKENS
from fluxbudgetd.wire.text import fold


def token_counts(values: Iterable[object]) -> tuple[list[int], int]:
    """Return the counts, and how many values were invalid (negative, not whole, text).

    Null and invalid values become 0. A float that is a whole number is valid.
    """
    counts, invalid = [], 0
    for value in values:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        is_valid = isinstance(whole, int) and not isinstance(whole, bool) and 0 <= whole <= MAX_TOKENS
        counts.append(whole if isinstance(whole, int) and is_valid else 0)
        invalid += not is_valid and value is not None
    return counts, invalid


def text(value: object) -> str:
    """Return a foreign value as text: null is empty, bytes are folded, a number is written out."""
    if isinstance(value, str):
        return value if value.isascii() else fold(value.encode())
    if value is None:
        return ""
    return fold(value) if isinstance(value, bytes) else str(value)


def agent_name(value: object) -> str:
    """Return an agent's name without the plugin's prefix."""
    return plain_name(text(value))


def moment(value: object) -> int | None:
    """Return an ISO-8601 time (fraction and zone are optional, the default zone is UTC); None if it is not one."""
    try:
        return to_micros(datetime.fromisoformat(text(value)))
    except (ValueError, OverflowError):
        return None
