"""`fluxbudgetd`: reads the command line, serves in the foreground."""

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import fluxbudgetd.lean  # noqa: F401  first, for what it keeps out
from fluxbudgetd import __version__, app, log
from fluxbudgetd.config.check import check
from fluxbudgetd.config.locations import Locations, locate
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ConfigError, FluxError, StartError
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
    made.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="the configuration (default: fluxbudget/config.toml in $XDG_CONFIG_HOME or ~/.config, if it is there)",
    )
    made.add_argument(
        "--check-config",
        action="store_true",
        help="say whether the configuration, the calibration and flux-drive's budget file are right, and exit",
    )
    made.add_argument("--version", action="version", version=f"fluxbudgetd {__version__}")
    return made


def _path(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or only check the configuration; return the exit code."""
    arguments = vars(parser().parse_args(argv))
    only_check = arguments.pop("check_config")
    locations = locate(os.environ, os.geteuid(), **arguments)
    if only_check:
        return _check(locations)
    app.hold_signals()
    close_log = log.configure()
    code = codes.OK
    try:
        settings = Settings(locations.config, required=locations.config_is_chosen, claude_dir=locations.claude_dir)
        settings.load_first()
        app.run(locations, settings)
    except ConfigError as exc:
        _complain(exc)
        code = codes.BAD_CONFIG
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


def _check(locations: Locations) -> int:
    code = codes.OK
    for line, error in check(locations):
        if error is not None:
            _complain(error)
            code = codes.BAD_CONFIG
            continue
        try:
            os.write(1, f"{line}\n".encode("utf-8", "backslashreplace"))
        except OSError as exc:
            _complain(FluxError(f"the output cannot be written: {exc.strerror}"))
            return codes.INTERNAL
    return code


def _complain(error: FluxError) -> None:
    text = f"fluxbudgetd: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
