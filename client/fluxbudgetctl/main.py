"""The entry point of `fluxbudgetctl`. Piped verbs are handled first, so that they import little."""

import posix
import sys
import time

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence

    from fluxbudgetctl.failure import Failure
    from fluxbudgetctl.pipe import Answer, Call


def main(argv: "Sequence[str] | None" = None) -> int:
    """Carry out a command line and return the exit code."""
    started_ns = time.monotonic_ns()
    arguments = list(sys.argv[1:] if argv is None else argv)
    native = handed = None
    if b"FLUXBUDGETCTL_NATIVE" in posix.environ or b"FLUXBUDGETCTL_FAILED" in posix.environ:
        import os  # noqa: PLC0415  without `site`, it would take longer to import than all the rest

        # Removed, so that child processes do not inherit them.
        native = os.environ.pop("FLUXBUDGETCTL_NATIVE", None)
        handed = os.environ.pop("FLUXBUDGETCTL_FAILED", None)
    code = 0
    try:
        code = _run(arguments, started_ns, native, handed)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as exc:
        return _exit_code(exc)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`). The answer's exit code stays.
        _discard_stdout()
    except OSError as exc:
        # This is an error in writing our own output; all others are handled where they occur.
        _discard_stdout()
        return _fail(f"the output cannot be written: {exc.strerror}", "check where stdout goes, and free disk space")
    except Exception as exc:  # noqa: BLE001  Python would exit with 1, which means "refused"
        if arguments[:1] == ["hook"] and not posix.environ.get(b"FLUXBUDGET_DEBUG"):
            return 0  # not even a defect disturbs a session
        return _fail(f"internal error: {type(exc).__name__}: {exc}", "please report it")
    return code


def _exit_code(request: SystemExit) -> int:
    """Return the exit code that argparse asks for, after flushing the help it has printed."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as exc:
        _discard_stdout()
        return _fail(f"the output cannot be written: {exc.strerror}", "check where stdout goes, and free disk space")
    return request.code if isinstance(request.code, int) else 0


def _fail(message: str, hint: str) -> int:
    from fluxbudgetctl.failure import Failure  # noqa: PLC0415  so that Ctrl-C during the import is caught, too

    return Failure(message, hint, 70).report()


def _discard_stdout() -> None:
    from fluxbudgetctl.failure import discard  # noqa: PLC0415  as above

    discard(1)


def _run(arguments: list[str], started_ns: int, native: str | None, handed: str | None) -> int:
    from fluxbudgetctl import pipe  # noqa: PLC0415  so that Ctrl-C during the import is caught, too

    if arguments and arguments[0] in pipe.VERBS:
        return _run_piped(arguments, started_ns, handed if native else None)
    from fluxbudgetctl import cli  # noqa: PLC0415  argparse and msgspec cost more than answering a piped verb

    return cli.main(arguments, native)


def _run_piped(words: list[str], started_ns: int, handed: str | None) -> int:
    from fluxbudgetctl import pipe  # noqa: PLC0415  loaded already

    call, failure = None, None
    seconds = pipe.time_limit(words)
    if seconds is not None:
        if handed == "timeout":
            started_ns -= int(seconds * 1e9)  # the native client has used up the time
        call = pipe.Call(words, seconds, started_ns)
        outcome = _handed_over(handed, seconds) or pipe.run(call)
        if isinstance(outcome, pipe.Answer):
            return _deliver(outcome, call)
        if outcome is not None and pipe.is_silent(call, outcome):
            return 0
        failure = outcome
    from fluxbudgetctl.commands import piped  # noqa: PLC0415  argparse costs more than an answer

    return piped.main(words, call, failure)


def _deliver(answer: "Answer", call: "Call") -> int:
    """Write an answer and return its exit code; raises `OSError`."""
    if call.is_claudes or answer.err or answer.exports:
        from fluxbudgetctl.delivery import deliver  # noqa: PLC0415  the simple case needs none of its imports

        return deliver(answer, call)
    rest = b"" if sys.stdout is None else answer.out
    try:
        while rest:
            rest = rest[posix.write(1, rest) :]
    except BrokenPipeError:
        pass  # the reader has closed the pipe; the exit code stays
    except BlockingIOError:
        from fluxbudgetctl.delivery import deliver  # noqa: PLC0415  it waits for the reader

        answer.out = rest
        return deliver(answer, call)
    return answer.exit_code


def _handed_over(handed: str | None, seconds: float) -> "Failure | None":
    """Return the native client's failure; None if there is none, or if the daemon must be asked again."""
    if handed is None:
        return None
    from fluxbudgetctl import handover  # noqa: PLC0415  only after the native client

    return handover.failure(handed, seconds)


if __name__ == "__main__":
    sys.exit(main())
