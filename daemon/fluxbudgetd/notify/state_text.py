"""What the state file of a run says: lines that a shell can source."""

import re

import msgspec

# A shell takes these characters literally, quoted or not.
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9._:+-]*")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's file says. Tokens are of the run's cost basis, `pct` has one decimal, times are ISO-8601 UTC.

    `line` is the text of the status line, without colours. `allowed_to` and `allowed_until` are an allowance: up to how
    many tokens, or until when, a run with an exceeded budget may go on. `as_of` is when the rest last changed.
    """

    run: str
    phase: str
    state: str
    budget: int | None
    remaining: int | None
    spent: int
    reserved: int
    pct: float | None
    stale: bool
    cost_basis: str
    enforcement: str
    allowed_to: int | None = None
    allowed_until: str = ""
    line: str
    as_of: str


def lines_of(state: State) -> bytes:
    """Return the lines `key=value` of a file. A value that a shell would interpret is left out."""
    lines = {
        "run": _plain(state.run),
        "phase": _plain(state.phase),
        "state": _plain(state.state),
        "budget": _number(state.budget),
        "spent": _number(state.spent),
        "remaining": _number(state.remaining),
        "pct": "" if state.pct is None else f"{state.pct:.1f}",
        "reserved": _number(state.reserved),
        "stale": str(int(state.stale)),
        "cost_basis": _plain(state.cost_basis),
        "enforcement": _plain(state.enforcement),
        "allowed_to": _number(state.allowed_to),
        "allowed_until": _plain(state.allowed_until),
        "line": _quoted(state.line),
        "as_of": _plain(state.as_of),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items()).encode()


def without_time(content: bytes) -> bytes:
    """Return a file's content without its last line, `as_of`."""
    return content.rpartition(b"as_of=")[0]


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _plain(text: str) -> str:
    return text if _PLAIN_VALUE.fullmatch(text) else ""


def _quoted(text: str) -> str:
    """Return a text in single quotes for a shell; a quote or an unprintable character in it becomes `?`."""
    return "'" + "".join("?" if c == "'" or not c.isprintable() else c for c in text) + "'"
