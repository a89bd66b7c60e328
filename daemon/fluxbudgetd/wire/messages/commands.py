"""Command lines that the client forwards, and that the daemon carries out and renders."""

from fluxbudgetd.wire.messages.base import Answer, Request


class Command(Request, frozen=True, kw_only=True, tag="command"):
    """Carry out a command line of `fluxbudgetctl`. The answer is what the client prints, and its exit code.

    Words, directory and variables are bytes, as the operating system gives them. The daemon answers as soon as it needs
    no more of stdin: when stdin holds a JSON object or has ended, or when the daemon has waited long enough.
    """

    words: tuple[bytes, ...]
    """The command line after the program's name, the verb first."""
    cwd: bytes | None = None
    """The working directory, symlinks resolved; null if it has been deleted."""
    env: dict[str, bytes] = {}  # noqa: RUF012  msgspec makes a new one for each struct
    """These variables, if they are set: `FLUXBUDGET_RUN`, `CLAVAIN_BEAD_ID`, `CLAUDE_CODE_SESSION_ID`,
    `CLAUDE_SESSION_ID`, `CLAUDE_CODE_ENTRYPOINT`, `CLAUDE_CODE_SESSION_ATTENDED`, `CLAVAIN_SKIP_BUDGET`, `COLUMNS`,
    `NO_COLOR`, `TERM`."""
    stdin: bytes = b""
    """What has arrived on stdin so far; only `hook` and `statusline` read stdin."""
    more: bool = False
    """True: the rest follows in `stdin` requests on this connection."""
    cut: bool = False
    """True: the input was longer than 256 KiB, and the rest was discarded."""
    started_ns: int = 0
    """When the client started, by CLOCK_MONOTONIC in nanoseconds; 0: unknown."""


class Stdin(Request, frozen=True, kw_only=True, tag="stdin"):
    """Continue the stdin of the preceding `command`. It has no answer of its own, and is ignored if it comes too late.

    All stdin of a command together is at most 256 KiB.
    """

    stdin: bytes
    more: bool = False
    """True: another one follows."""
    cut: bool = False
    """As for `command`."""


class CommandAnswer(Answer, frozen=True, kw_only=True, tag="command"):
    """What the client writes, and its exit code. This includes errors, except those of `hook`."""

    mine: bool = True
    """False: the daemon does not handle this command line (help, mistakes, other verbs); nothing else is set."""
    exit: int = 0
    out: bytes = b""
    """All bytes for stdout."""
    err: bytes = b""
    """All bytes for stderr."""
    exports: bytes = b""
    """Lines to append to the file that `$CLAUDE_ENV_FILE` names."""
