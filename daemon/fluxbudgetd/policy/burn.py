"""The burn rate: recent tokens per minute, and how long the remaining budget lasts at that rate."""

from collections.abc import Iterable, Mapping

from fluxbudgetd.model import Counts, Usage

#: minute since the epoch → tokens used in it
Minutes = Mapping[int, int]

#: How far back the rate looks, in minutes: the current one, and those before it.
WINDOW = 10
#: The longest forecast, in minutes.
LONGEST = 7 * 24 * 60

#: A minute, in microseconds.
MINUTE = 60 * 1_000_000
_HOUR = 60


def by_minute(records: Iterable[Usage], now: int) -> dict[int, Counts]:
    """Return the usage of the last `WINDOW` minutes by minute (and of the future, if another clock is ahead)."""
    oldest = (now // MINUTE - WINDOW + 1) * MINUTE
    found: dict[int, Counts] = {}
    for record in records:
        if record.at is not None and record.at >= oldest:
            minute = record.at // MINUTE
            found[minute] = found.get(minute, Counts()) + record.counts
    return found


def shifted(
    minutes: Mapping[int, Counts], less: Mapping[int, Counts], more: Mapping[int, Counts], now: int
) -> dict[int, Counts]:
    """Return `minutes` minus `less` plus `more`, without the minutes that have left the window."""
    found = dict(minutes)
    for minute, counts in more.items():
        found[minute] = found.get(minute, Counts()) + counts
    for minute, counts in less.items():
        found[minute] = found.get(minute, Counts()) - counts
    return {minute: counts for minute, counts in found.items() if minute > now // MINUTE - WINDOW}


def rate(minutes: Minutes, now: int) -> int:
    """Return the tokens per minute of the last `WINDOW` minutes, rounded down; 0 if nothing was used.

    They are spread over the time since the window's first usage (from the start of its minute on), at least a minute.
    Minutes in the future, by a clock that is ahead, count as the current one.
    """
    current = now // MINUTE
    recent = {minute: tokens for minute, tokens in minutes.items() if tokens > 0 and minute > current - WINDOW}
    if not recent:
        return 0
    # If all minutes are in the future the time is negative; it is at least a minute.
    elapsed = max(now - min(recent) * MINUTE, MINUTE)
    return sum(recent.values()) * MINUTE // elapsed


def minutes_left(remaining: int | None, rate: int) -> int | None:
    """Return how many minutes the remaining tokens last, rounded down.

    None if there is no limit or no usage, or if they last more than 7 days.
    """
    if remaining is None or rate <= 0 or remaining > LONGEST * rate:
        return None
    return remaining // rate


def forecast(minutes_left: int | None) -> str:
    """Return the time left in words, rounded down: `about 23 min at this rate`, in hours from 2 h on; "" for None."""
    if minutes_left is None:
        return ""
    if minutes_left < 1:
        return "less than a minute at this rate"
    if minutes_left < 2 * _HOUR:
        return f"about {minutes_left} min at this rate"
    return f"about {minutes_left // _HOUR} h at this rate"
