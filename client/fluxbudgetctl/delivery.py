"""Write a reply: stderr, stdout, and the file that `$CLAUDE_ENV_FILE` names."""

import errno
import posix
import sys

from fluxbudgetctl import stdio
from fluxbudgetd.wire import codes

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetctl.pipe import Answer, Call
    from fluxbudgetd.wire.replies import Reply

_KIND, _REGULAR = 0o170000, 0o100000  # S_IFMT and S_IFREG of `stat`, which imports more than this


def deliver(answer: "Answer | Reply", call: "Call") -> int:
    """Write an answer and return its exit code; raises `OSError` if that is not possible.

    The verbs that Claude Code waits for give up at the call's deadline.
    """
    deadline = call.deadline if call.is_claudes else None
    if answer.exports:
        try:
            _export(answer.exports)
        except OSError as exc:
            debug(call, f"the file named by $CLAUDE_ENV_FILE cannot be written: {exc.strerror}")
    try:  # noqa: SIM105  contextlib is not imported for this
        stdio.write(answer.err, sys.stderr, deadline)
    except OSError:
        pass  # stdout and the exit code are unaffected
    try:
        stdio.write(answer.out, sys.stdout, deadline)
    except OSError as exc:
        if call.verb == "hook":
            debug(call, f"the output cannot be written: {exc.strerror}")
        elif isinstance(exc, TimeoutError):
            from fluxbudgetctl.failure import Failure, limit_stderr  # noqa: PLC0415  only for failures

            limit_stderr(deadline)
            message = f"the line cannot be written: {exc.strerror}"
            return Failure(message, "make sure that stdout is read", codes.NO_ANSWER).report()
        elif not isinstance(exc, BrokenPipeError):  # the exit code stays
            raise
    return answer.exit_code


def debug(call: "Call", message: str) -> None:
    """Report a hook's problem on stderr if `$FLUXBUDGET_DEBUG` is set."""
    if posix.environ.get(b"FLUXBUDGET_DEBUG"):
        from fluxbudgetctl.failure import limit_stderr, print_stderr  # noqa: PLC0415  only for failures
        from fluxbudgetd.wire.text import one_line  # noqa: PLC0415  likewise

        limit_stderr(call.deadline)
        print_stderr(f"fluxbudgetctl hook: {one_line(message)}")


def _export(lines: bytes) -> None:
    """Append lines to the file that Claude Code reads environment variables from; raises `OSError`."""
    path = posix.environ.get(b"CLAUDE_ENV_FILE")
    if not path:
        return
    # O_NONBLOCK: the path may lead to a FIFO or a device, which would block the hook.
    flags = posix.O_RDWR | posix.O_APPEND | posix.O_CREAT | posix.O_NONBLOCK | posix.O_CLOEXEC
    file = posix.open(path, flags, 0o600)
    try:
        status = posix.fstat(file)
        if status.st_mode & _KIND != _REGULAR:
            raise OSError(errno.EINVAL, "it is not a regular file")
        size = status.st_size
        before = b"" if size == 0 or posix.pread(file, 1, size - 1) == b"\n" else b"\n"
        posix.write(file, before + lines)
    finally:
        posix.close(file)
