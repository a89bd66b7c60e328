"""What Claude Code calls: hooks and the status line."""

from fluxbudgetd.wire.messages.base import Answer, Naming


class Hook(Naming, frozen=True, kw_only=True, tag="hook"):
    """Handle a Claude Code hook. `hints` come from the hook's environment."""

    input: bytes
    """The JSON that the hook received."""
    whole: bool = True
    """False: the JSON was too long, and this is its beginning."""
    attended: bool = False
    """True: the environment says that a person is there to answer a question."""


class StatusLine(Naming, frozen=True, kw_only=True, tag="statusline"):
    """Return a line for Claude Code's status line."""

    input: bytes = b""
    """The JSON that the status line's command received; may be empty."""
    whole: bool = True
    """False: `input` is only its beginning."""
    width: int | None = None
    """How many cells the line may take; null: no limit."""
    colour: bool = False


class HookAnswer(Answer, frozen=True, kw_only=True, tag="hook"):
    """What the hook prints and exports."""

    output: str = ""
    """JSON for stdout; empty: print nothing."""
    exports: str = ""
    """Lines to append to the file that `$CLAUDE_ENV_FILE` names."""


class StatusLineAnswer(Answer, frozen=True, kw_only=True, tag="statusline"):
    """One line, without its newline."""

    run: str
    """Empty if the directory has several active runs, and none of them is hard."""
    line: str
    stale_why: str | None
    tied: tuple[str, ...] = ()
    """All active runs of the directory, if it has several and none was named."""
