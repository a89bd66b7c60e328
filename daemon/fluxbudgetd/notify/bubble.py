"""The content of a desktop notification, in the form that notification servers accept.

The rules are those of the Desktop Notifications Specification: https://specifications.freedesktop.org/notification-spec
"""

from html import escape
from typing import Literal

import msgspec

from fluxbudgetd.config.shown import shortened
from fluxbudgetd.wire.text import one_line

Urgency = Literal["low", "normal", "critical"]

#: The longest title and body, in characters; the rest is cut off.
MAX_TITLE = 200
MAX_BODY = 1000

#: The specification's number and the icon of each urgency.
URGENCIES: dict[Urgency, tuple[int, str]] = {
    "low": (0, "dialog-information"),
    "normal": (1, "dialog-warning"),
    "critical": (2, "dialog-error"),
}


class Bubble(msgspec.Struct, frozen=True, kw_only=True):
    """A notification; its title and body are untrusted plain text. A bubble replaces the previous one with its key."""

    key: str
    title: str
    body: str
    urgency: Urgency


def title_of(bubble: Bubble) -> str:
    """Return the title as one line. Servers never interpret it as markup."""
    return shortened(one_line(bubble.title[: MAX_TITLE + 1]), MAX_TITLE)


def body_of(bubble: Bubble, *, markup: bool) -> str:
    """Return the body with its line breaks, escaped if the server interprets markup."""
    lines = bubble.body[: MAX_BODY + 1].split("\n")
    text = shortened("\n".join(map(one_line, lines)), MAX_BODY)
    return escape(text, quote=False) if markup else text
