"""`calibrate`: what phases and agents have cost so far."""

import os
import tempfile

import msgspec

from fluxbudgetctl.arguments import Options, Subcommands, add_command
from fluxbudgetctl.calls import call
from fluxbudgetctl.failure import Failure
from fluxbudgetctl.screens.calibration import print_calibration
from fluxbudgetctl.screens.output import note, note_stale, print_json
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import unfold


def add(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(commands, "calibrate", "print what phases and agents have cost so far", _calibrate)
    parser.add_argument("--write", action="store_true", help="save the result, for future estimates")


def _calibrate(options: Options) -> int:
    answer = call(messages.Calibrate(), messages.CalibrateAnswer, options.timeout)
    note_stale(answer.stale_why)
    if options.write:
        if answer.stale_why:
            hint = "see 'fluxbudgetctl doctor', then calibrate again"
            raise Failure(f"not written: {answer.stale_why}", hint, codes.REFUSED)
        text = msgspec.json.format(msgspec.json.encode(answer.calibration), indent=2) + b"\n"
        _write(os.fsdecode(unfold(answer.path)), text)
        note(f"written to {answer.path}")
    if options.json:
        print_json(answer.calibration)
    else:
        print_calibration(answer.calibration)
    return codes.OK


def _write(path: str, data: bytes) -> None:
    """Replace a file atomically; raises `Failure` and keeps the old file if that is impossible."""
    directory = os.path.dirname(path)
    temporary = None
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".calibration-", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as exc:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise Failure(
            f"{path} cannot be written: {exc.strerror}", "check the directory and its permissions", codes.INTERNAL
        ) from None
