"""What all messages have in common, and the types they share."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.codes import VERSION

#: The largest token count on the wire. Larger sums are sent as this number.
MAX_TOKENS = 2**63 - 1

Enforcement = Literal["soft", "hard"]
CostBasis = Literal["billing", "total"]
RunStatus = Literal["active", "done", "cancelled"]
BudgetState = Literal["unlimited", "ok", "warning", "exceeded"]


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the client's environment says about the run. Used when the request does not name one."""

    run: str | None = None
    """`$FLUXBUDGET_RUN`: if set, the other hints are ignored."""
    scope: str | None = None
    """`$CLAVAIN_BEAD_ID`."""
    sessions: tuple[str, ...] = ()
    """`$CLAUDE_CODE_SESSION_ID`, `$CLAUDE_SESSION_ID`, in this order."""
    cwd: str | None = None
    """The working directory, absolute, symlinks resolved."""


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """Fields of every request."""

    v: int = VERSION
    """The protocol version; 1 if omitted."""
    wait_ms: int = 200
    """How long the client will wait. If a source takes longer, the answer has the last known numbers."""


class Naming(Request, frozen=True, kw_only=True):
    """A request about one run, named by its id, its scope or one of its sessions, otherwise by hints."""

    run: str | None = None
    scope: str | None = None
    session: str | None = None
    hints: Hints = Hints()


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="op"):
    """Fields of every answer."""

    ok: bool = True


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong and what to do next. The codes are those of `codes.ERROR_CODES`."""

    code: str
    message: str
    hint: str


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a request that failed."""

    error: ErrorInfo
    ok: bool = False


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a request that every protocol version has."""

    v: int = VERSION
    op: str
