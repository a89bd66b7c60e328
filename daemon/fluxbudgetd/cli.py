"""The program `fluxbudgetd`: reads the command line, and serves in the foreground."""

import argparse
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

import fluxbudgetd.lean  # noqa: F401  first: it keeps rich out
from fluxbudgetd import __version__, app, log
from fluxbudgetd.config.check import check
from fluxbudgetd.config.locations import Locations, interstat_database, locate
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.config.template import template
from fluxbudgetd.errors import ConfigError, FluxError, StartError
from fluxbudgetd.server.listener import Listener, passed_listener
from fluxbudgetd.systemd import Manager, passed_descriptors
from fluxbudgetd.wire import codes

# A daemon that was started by a client and cannot serve retries for this long, and meanwhile tells clients why. If it
# exited at once, each client would start it again, until the socket's trigger limit closes the socket.
_RETRY_SECONDS = 3.0
_REFUSAL_SECONDS = 0.3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        log.write_now(f"fluxbudgetd: {message}\nhint: see 'fluxbudgetd --help'")
        raise SystemExit(codes.USAGE)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    program = _Parser(
        prog="fluxbudgetd",
        description="Keep live token totals for sprint runs and answer fluxbudgetctl on a Unix socket.",
        epilog="Runs in the foreground and logs to stderr. SIGTERM and SIGINT end it. SIGHUP reloads the configuration "
        "and reopens the sources.",
        allow_abbrev=False,
    )
    program.add_argument(
        "--socket",
        type=_path,
        metavar="PATH",
        help="the socket (default: $FLUXBUDGET_SOCKET, else fluxbudget/fluxbudgetd.sock in $XDG_RUNTIME_DIR)",
    )
    program.add_argument(
        "--state-dir",
        type=_path,
        metavar="DIR",
        help="where the ledger is (default: $STATE_DIRECTORY, else fluxbudget in $XDG_STATE_HOME or ~/.local/state)",
    )
    program.add_argument(
        "--interstat-db",
        type=_path,
        metavar="FILE",
        help="interstat's database (default: $INTERSTAT_DB, else interstat/metrics.db in the first Claude directory "
        "that has one)",
    )
    program.add_argument(
        "--claude-dir",
        type=_path,
        action="append",
        dest="claude_dirs",
        metavar="DIR",
        help="one of Claude Code's directories; may be repeated (default: claude_dirs in the configuration, else "
        "$CLAUDE_CONFIG_DIR, else ~/.claude and claude in $XDG_CONFIG_HOME or ~/.config)",
    )
    program.add_argument(
        "--config",
        type=_path,
        metavar="FILE",
        help="the configuration (default: fluxbudget/config.toml in $XDG_CONFIG_HOME or ~/.config, if it exists)",
    )
    actions = program.add_mutually_exclusive_group()
    actions.add_argument(
        "--check-config",
        action="store_true",
        help="check the configuration, the calibration and flux-drive's budget file, and exit",
    )
    actions.add_argument(
        "--print-config",
        action="store_true",
        help="print a configuration with every key at its default, and exit",
    )
    program.add_argument("--version", action="version", version=f"fluxbudgetd {__version__}")
    return program


def _path(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("it must not be empty")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or check or print the configuration; return the exit code."""
    _open_standard_streams()
    arguments = vars(parser().parse_args(argv))
    only_check, only_print = arguments.pop("check_config"), arguments.pop("print_config")
    if only_check:
        return _check(arguments)
    if only_print:
        return _print_template()
    # When a library crashes, the stacks of all threads go to stderr.
    faulthandler.enable(2)
    app.hold_signals()
    manager = Manager.from_environment(os.environ, os.getpid())
    descriptors = passed_descriptors(os.environ, os.getpid())
    close_log = log.configure()
    try:
        code = _serve(arguments, manager, descriptors)
    except Exception:  # noqa: BLE001  it is logged, with its traceback
        # For a service manager, the exit code distinguishes a defect from a refusal to start.
        app.log.exception("the daemon failed")
        code = codes.INTERNAL
    finally:
        close_log()
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        # A thread hangs in a file system that does not answer. Everything of ours is closed, so do not wait for it.
        os._exit(code)
    return code


def _open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise the next file to be opened would get that number, and the log would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # `open` returns the lowest free number, which is this one. Commands that the daemon starts inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _serve(arguments: Mapping[str, Any], manager: Manager, descriptors: Sequence[int]) -> int:
    """Serve; return the exit code."""
    listener = None
    # The user often fixes the cause right away.
    retry_until = time.monotonic() + _RETRY_SECONDS
    has_refused = False
    while True:
        try:
            listener = listener or passed_listener(descriptors)
            locations = _locate(arguments, listener)
            settings = Settings(
                locations.config, required=locations.config_is_chosen, claude_dirs=locations.claude_dirs
            )
            settings.load_first()
            database = locations.interstat_db or interstat_database(settings.claude_dirs)
            locations = msgspec.structs.replace(locations, interstat_db=database)
            app.run(locations, settings, manager, listener)
        except FluxError as exc:
            if listener is not None:
                has_refused |= app.refuse(listener, exc, _REFUSAL_SECONDS)
            if not has_refused or time.monotonic() > retry_until:
                _print_error(exc)
                return _exit_code(exc)
        else:
            return codes.OK


def _locate(arguments: Mapping[str, Any], passed: Listener | None) -> Locations:
    """Return the locations; a passed socket replaces the default one. Raise `StartError` if --socket differs."""
    located = locate(os.environ, os.geteuid(), **arguments)
    if passed is None or passed.path == located.socket:
        return located
    if arguments["socket"] is not None:
        raise StartError(
            f"the socket {passed.path} was passed, but --socket says {located.socket}",
            "leave --socket out",
            codes.USAGE,
        )
    return locate(os.environ, os.geteuid(), **{**arguments, "socket": passed.path})


def _exit_code(error: FluxError) -> int:
    if isinstance(error, StartError):
        return error.exit_code
    return codes.BAD_CONFIG if isinstance(error, ConfigError) else codes.INTERNAL


def _check(arguments: Mapping[str, Any]) -> int:
    try:
        locations = locate(os.environ, os.geteuid(), **arguments)
    except ConfigError as exc:
        _print_error(exc)
        return codes.BAD_CONFIG
    code = codes.OK
    for line, error in check(locations):
        if error is not None:
            _print_error(error)
            code = codes.BAD_CONFIG
            continue
        if not _written(f"{line}\n"):
            return codes.INTERNAL
    return code


def _print_template() -> int:
    try:
        text = template()
    except FluxError as exc:
        _print_error(exc)
        return codes.INTERNAL
    return codes.OK if _written(text) else codes.INTERNAL


def _written(text: str) -> bool:
    """Write to stdout. Return False, after an error on stderr, if that fails."""
    left = text.encode("utf-8", "backslashreplace")
    try:
        while left:
            left = left[os.write(1, left) :]
    except OSError as exc:
        _print_error(FluxError(f"the output cannot be written: {exc.strerror}", "check where stdout goes"))
        return False
    return True


def _print_error(error: FluxError) -> None:
    log.write_now(f"fluxbudgetd: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))


if __name__ == "__main__":
    sys.exit(main())
