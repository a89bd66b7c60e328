"""`fluxbudgetctl`: hot verbs first, without importing what they do not need."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Taken out, so that no program that this one starts takes it for its own.
    native = os.environ.pop("FLUXBUDGETCTL_NATIVE", None)
    code = 0
    try:
        code = _run(arguments, native)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as exc:
        return _ended(exc)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): there is nobody left to tell, but the answer stays the answer.
        _silence()
    except OSError as exc:
        # Our own output cannot be written; everything else is translated where it happens.
        _silence()
        return _fail(f"the output cannot be written: {exc.strerror}", "is the disk full?")
    except Exception as exc:  # noqa: BLE001  a hook must never take a defect's exit code, 1, for "refused"
        return _fail(f"internal error: {type(exc).__name__}: {exc}", "please report it")
    return code


def _ended(request: SystemExit) -> int:
    """Return the exit code of argparse's own end, after its help has been written out."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as exc:
        _silence()
        return _fail(f"the output cannot be written: {exc.strerror}", "is the disk full?")
    return request.code if isinstance(request.code, int) else 0


def _fail(message: str, hint: str) -> int:
    from fluxbudgetctl.failure import Failure  # noqa: PLC0415

    return Failure(message, hint, 70).tell()


def _silence() -> None:
    from fluxbudgetctl.failure import silence  # noqa: PLC0415

    silence(1)


def bare() -> int:
    """Carry out a plain hot verb with nothing but this package at hand; have Python start anew for everything else.

    For `fluxbudgetctl` where there is no native client: Python starts sooner when it looks for no other packages.
    """
    from fluxbudgetctl import hot  # noqa: PLC0415

    if hot.parse(sys.argv[1:]) is not None:
        return main()
    try:
        os.execv(sys.argv[0], sys.argv)  # noqa: S606  no shell is wanted
    except OSError as exc:
        if sys.argv[1:2] == ["hook"]:
            return 0  # whatever is wrong, the session is not disturbed
        hint = "install fluxbudget again: this command line is for its Python client"
        return _fail(f"{sys.argv[0]}: {exc.strerror}", hint)


def _run(arguments: list[str], native: str | None) -> int:
    from fluxbudgetctl import hot  # noqa: PLC0415  so that an interrupt while importing is caught, too

    options = hot.parse(arguments)
    if options is not None:
        return hot.run(options)
    from fluxbudgetctl import cli  # noqa: PLC0415  argparse and msgspec cost more than a hot verb's whole answer

    return cli.run(arguments, native)


if __name__ == "__main__":
    sys.exit(main())
