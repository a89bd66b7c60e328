"""The entry point of `fluxbudgetctl`: hot verbs first, so that they import only what they need."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Removed, so that child processes do not inherit it.
    native = os.environ.pop("FLUXBUDGETCTL_NATIVE", None)
    code = 0
    try:
        code = _run(arguments, native)
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
        # Only writing our own output can get here; all other errors are handled where they occur.
        _discard_stdout()
        return _fail(f"the output cannot be written: {exc.strerror}", "check where stdout goes, and free disk space")
    except Exception as exc:  # noqa: BLE001  Python would exit with 1, which means "refused"
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
    from fluxbudgetctl.failure import Failure  # noqa: PLC0415

    return Failure(message, hint, 70).report()


def _discard_stdout() -> None:
    from fluxbudgetctl.failure import discard  # noqa: PLC0415

    discard(1)


def _run(arguments: list[str], native: str | None) -> int:
    from fluxbudgetctl import hot  # noqa: PLC0415  so that Ctrl-C during the import is caught, too

    options = hot.parse(arguments)
    if options is not None:
        return hot.run(options)
    from fluxbudgetctl import cli  # noqa: PLC0415  argparse and msgspec cost more than answering a hot verb

    return cli.main(arguments, native)


if __name__ == "__main__":
    sys.exit(main())
