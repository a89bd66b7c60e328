"""What a desktop notification says, as notification servers take it.

The rules are those of the Desktop Notifications Specification: https://specifications.freedesktop.org/notification-spec
"""

from html import escape
from typing import Literal

import msgspec

from fluxbudgetd.config.shown import one_line, shortened

Urgency = Literal["low", "normal", "critical"]

#: So many characters of a title and a body are shown.
MAX_TITLE = 200
MAX_BODY = 1000

#: The specification's number and the icon of each urgency.
LOOKS: dict[Urgency, tuple[int, str]] = {
    "low": (0, "dialog-information"),
    "normal": (1, "dialog-warning"),
    "critical": (2, "dialog-error"),
}


class Bubble(msgspec.Struct, frozen=True, kw_only=True):
    """A notification. Bubbles with one key replace each other; title and body are plain text from anywhere."""

    key: str
    title: str
    body: str
    urgency: Urgency


def title_of(bubble: Bubble) -> str:
    """Return the title: one line, which is never markup."""
    return shortened(one_line(bubble.title[: MAX_TITLE + 1]), MAX_TITLE)


def body_of(bubble: Bubble, *, markup: bool) -> str:
    """Return the body, whose lines stay lines. Where a server takes markup, what looks like it is escaped."""
    lines = bubble.body[: MAX_BODY + 1].split("\n")
    text = shortened("\n".join(map(one_line, lines)), MAX_BODY)
    return escape(text, quote=False) if markup else text
