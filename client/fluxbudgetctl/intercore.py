"""`advance` for a run that intercore keeps: `ic` moves it, and the daemon then reads what has changed.

The client runs `ic`, because it has the user's PATH and may write to the project. The daemon's sandbox may not.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from typing import IO

import msgspec

from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import fold, one_line, unfold

#: How long `ic` may take, in seconds. It usually takes some milliseconds.
SECONDS = 10.0
_MOST_BYTES = 64 * 1024
_DATABASE = os.path.join(".clavain", "intercore.db")
#: Why intercore did not move a run: the event that it has recorded → the reason on our line.
_REASONS = {"block": "gate_blocked", "pause": "manual_pause"}


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `ic --json run advance` prints. `event_type` and `reason` may be missing."""

    advanced: bool
    from_phase: str
    to_phase: str
    event_type: str = ""
    reason: str | None = None


def advance(allowed: messages.AdvanceAnswer, seconds: float) -> messages.AdvanceAnswer:
    """Have `ic` move a run that the daemon allows to move; return the answer with what has become of it.

    `seconds` limits the request to the daemon that follows. Raises `Failure` if `ic` does not say what it has done.
    """
    result = _moved(allowed)
    if not result.advanced:
        reason = _REASONS.get(result.event_type, "not_advanced")
        line = one_line(f"{reason}|{result.from_phase}|{result.reason or 'no reason'}")
        return msgspec.structs.replace(allowed, line=line)
    notes = [allowed.note] if allowed.note else []
    if result.from_phase != allowed.phase:
        notes.append(f"the run was in {result.from_phase} when ic moved it")
    answer = msgspec.structs.replace(
        allowed,
        advanced=True,
        line=one_line(f"advanced|{result.from_phase}|{result.to_phase}"),
        phase=result.to_phase,
    )
    try:
        # This request makes the daemon read the database.
        shown = call(messages.RunShow(run=allowed.run, hints=hints()), messages.RunShowAnswer, seconds)
    except Failure as failure:
        notes.append(f"ic has moved the run, but the daemon has not seen it yet: {failure.message}")
        return msgspec.structs.replace(answer, note="; ".join(notes))
    completed = [line for line in shown.by_phase if line.name == result.from_phase and line.state == "completed"]
    return msgspec.structs.replace(
        answer, note="; ".join(notes), spend=shown.spend, completed=completed[0] if completed else None
    )


def _moved(allowed: messages.AdvanceAnswer) -> _Result:
    """Run `ic` and return what it prints; raises `Failure`."""
    program = shutil.which("ic")
    if program is None:
        raise Failure(
            f"only intercore moves run {allowed.run}, and its program 'ic' is not on PATH",
            "install intercore, or add the directory of 'ic' to PATH",
            codes.BAD_INPUT,
        )
    directory = os.fsdecode(unfold(allowed.ic_directory or ""))
    # `ic` would create an empty database.
    if not os.path.isfile(os.path.join(directory, _DATABASE)):
        raise Failure(
            f"only intercore moves run {allowed.run}, and its database {os.path.join(directory, _DATABASE)} is gone",
            "restore it; or end the run with 'fluxbudgetctl run finish' and start another one",
            codes.BAD_INPUT,
        )
    words = [os.path.abspath(program), "--json", "run", "advance", os.fsdecode(unfold(allowed.ic_run or ""))]
    if allowed.overridden is not None:
        words.append(f"--skip-reason={os.fsdecode(unfold(allowed.overridden))}")
    return _result(allowed, *_run(words, directory))


def _run(words: list[str], directory: str) -> tuple[int, bytes, bytes]:
    """Return the exit code, stdout and stderr of a command; raises `Failure` if it takes too long, or cannot start."""
    # Not pipes: a program that `ic` leaves in the background would keep them open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(  # noqa: S603  no shell; the caller's own PATH names the program
                words, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0
            )
        except OSError as exc:
            raise Failure(
                f"{words[0]} cannot be started: {exc.strerror}", "check that 'ic version' works", codes.BAD_INPUT
            ) from None
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(
                f"'ic run advance' did not end within {SECONDS:g} s and was killed",
                "see 'ic run status' for the phase that the run is in",
                codes.NO_ANSWER,
            ) from None
        finally:
            if process.returncode is None:  # also after Ctrl-C, which does not reach another process group
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return code, _beginning(out), _beginning(err)


def _beginning(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_MOST_BYTES)


def _result(allowed: messages.AdvanceAnswer, code: int, out: bytes, err: bytes) -> _Result:
    """Return what `ic` has printed; raises `Failure` unless it is complete and its exit code agrees."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        result = msgspec.json.decode(out, type=_Result)
        if code == (codes.OK if result.advanced else codes.REFUSED):
            return result
    said = fold(err.strip().partition(b"\n")[0]) or "it printed no result"
    raise Failure(
        f"'ic run advance' failed with exit code {code}: {one_line(said)}",
        f"run 'ic run status {allowed.ic_run}' in {allowed.ic_directory}",
        codes.INTERNAL,
    )
