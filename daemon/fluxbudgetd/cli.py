"""`fluxbudgetd`: reads the command line, serves in the foreground."""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from fluxbudgetd import __version__, app, log
from fluxbudgetd.config.locations import locate
from fluxbudgetd.errors import FluxError, StartError
from fluxbudgetd.wire import codes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"fluxbudgetd: {message}\nhint: see 'fluxbudgetd --help'\n")
        raise SystemExit(codes.USAGE)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = _Parser(
        prog="fluxbudgetd",
        description="Keep live token totals for sprint runs and answer fluxbudgetctl on a Unix socket.",
        epilog="Runs in the foreground and logs to stderr. SIGTERM and SIGINT end it, SIGHUP opens the sources anew.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--socket",
        type=_path,
        metavar="PATH",
        help="the socket (default: $FLUXBUDGET_SOCKET, else fluxbudget/fluxbudgetd.sock in $XDG_RUNTIME_DIR)",
    )
    made.add_argument(
        "--state-dir",
        type=_path,
        metavar="DIR",
        help="where the ledger is (default: $STATE_DIRECTORY, else fluxbudget in $XDG_STATE_HOME or ~/.local/state)",
    )
    made.add_argument(
        "--interstat-db",
        type=_path,
        metavar="FILE",
        help="interstat's database (default: $INTERSTAT_DB, else interstat/metrics.db in the Claude directory)",
    )
    made.add_argument(
        "--claude-dir",
        type=_path,
        metavar="DIR",
        help="Claude's directory (default: $CLAUDE_CONFIG_DIR, else ~/.claude)",
    )
    made.add_argument("--version", action="version", version=f"fluxbudgetd {__version__}")
    return made


def _path(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; return the exit code."""
    arguments = parser().parse_args(argv)
    locations = locate(os.environ, os.geteuid(), **vars(arguments))
    app.hold_signals()
    close_log = log.configure()
    code = codes.OK
    try:
        app.run(locations)
    except StartError as exc:
        _complain(exc)
        code = exc.exit_code
    except FluxError as exc:
        _complain(exc)
        code = codes.INTERNAL
    finally:
        close_log()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # A thread hangs in a file system that does not answer; everything of ours is closed, so do not wait for it.
        os._exit(code)
    return code


def _complain(error: FluxError) -> None:
    text = f"fluxbudgetd: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
