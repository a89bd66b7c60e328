"""The errors that a request, a channel or the daemon's start can end with: one family.

An error's message says what happened to which file, run or value; its hint says what to do next.
"""

# At most this many runs are listed in an error.
_MOST_LISTED = 5


class FluxError(Exception):
    """A failed request. `code` is one of `wire.codes.ERROR_CODES`. The base class itself means an internal error."""

    code = "internal"

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NoRunError(FluxError):
    """No run has the given name, or the hints lead to none."""

    code = "no_run"


class AmbiguousRunError(NoRunError):
    """Several active runs have the same directory, and the request names none of them. `runs` are their ids."""

    def __init__(self, directory: str, runs: tuple[str, ...]) -> None:
        shown = ", ".join(runs[:_MOST_LISTED]) + (", …" if len(runs) > _MOST_LISTED else "")
        super().__init__(
            f"{len(runs)} active runs have {directory} as their project: {shown}",
            "name one with --run, --scope or --session",
        )
        self.directory = directory
        self.runs = runs


class BadInputError(FluxError):
    """A value that is not allowed."""

    code = "bad_input"


class ConflictError(FluxError):
    """The request contradicts what exists already."""

    code = "conflict"


class RefusedError(FluxError):
    """What was asked for is not allowed from inside a session."""

    code = "refused"


class BadRequestError(FluxError):
    """The bytes are not a request of this protocol."""

    code = "bad_request"


class UnknownOpError(FluxError):
    """This version does not know the operation."""

    code = "unknown_op"


class UnsupportedVersionError(FluxError):
    """The daemon does not speak the request's protocol version."""

    code = "unsupported_version"


class TooLargeError(FluxError):
    """A frame's length is invalid."""

    code = "too_large"


class AnswerTooLargeError(FluxError):
    """The answer does not fit into a frame."""

    code = "answer_too_large"


class RequestTimeoutError(FluxError):
    """A frame did not arrive in time, or a request took too long."""

    code = "timeout"


class BusyError(FluxError):
    """The daemon has reached a limit."""

    code = "busy"


class ForbiddenError(FluxError):
    """The peer is another user."""

    code = "forbidden"


class ConfigError(FluxError):
    """A configuration file is wrong. The message names the file, the line or key, what was found, what is allowed."""

    code = "bad_config"


class LedgerError(FluxError):
    """The ledger could not be read or written."""

    code = "ledger"


class ChannelError(FluxError):
    """A channel could not deliver an event. `resting`: there is nothing to deliver to, which is not a fault."""

    code = "internal"

    def __init__(self, message: str, hint: str, *, resting: bool = False) -> None:
        super().__init__(message, hint)
        self.resting = resting


class StartError(FluxError):
    """The daemon cannot start. `exit_code` is the process's exit code."""

    code = "unavailable"

    def __init__(self, message: str, hint: str, exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
