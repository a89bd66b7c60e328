"""What can go wrong, as one small family. Each error says what happened to what, and what to do next."""


class FluxError(Exception):
    """A request that is not carried out. `code` is one of `wire.codes.ERROR_CODES`."""

    code = "internal"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class NoRunError(FluxError):
    """No run goes by the name that was given, or the hints name none, or several."""

    code = "no_run"


class BadInputError(FluxError):
    """A value that is not allowed."""

    code = "bad_input"


class ConflictError(FluxError):
    """What is asked contradicts what is already there."""

    code = "conflict"


class BadRequestError(FluxError):
    """The bytes are not a request of this protocol."""

    code = "bad_request"


class UnknownOpError(FluxError):
    """The operation does not exist in this version."""

    code = "unknown_op"


class UnsupportedVersionError(FluxError):
    """The protocol version is not served."""

    code = "unsupported_version"


class TooLargeError(FluxError):
    """A frame's length is impossible."""

    code = "too_large"


class AnswerTooLargeError(FluxError):
    """The answer would not fit into a frame."""

    code = "answer_too_large"


class RequestTimeoutError(FluxError):
    """A frame that did not arrive, or a request that took too long."""

    code = "timeout"


class BusyError(FluxError):
    """The daemon is at a limit."""

    code = "busy"


class ForbiddenError(FluxError):
    """The peer is another user."""

    code = "forbidden"


class ConfigError(FluxError):
    """A configuration file is wrong: the message names file, line or key, what was found, what is allowed."""

    code = "bad_config"


class LedgerError(FluxError):
    """The ledger could not be read or written."""

    code = "ledger"


class ChannelError(FluxError):
    """A channel could not tell what it was given. `resting`: it has nothing to tell it to, which is nobody's fault."""

    code = "internal"

    def __init__(self, message: str, hint: str = "", *, resting: bool = False) -> None:
        super().__init__(message, hint)
        self.resting = resting


class StartError(FluxError):
    """The daemon cannot start. `exit_code` is the process's exit code."""

    code = "unavailable"

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code
