"""`advance` for an intercore run: `ic` moves it, and the daemon then reads what has changed.

The client runs `ic`, because it has the user's PATH and may write to the project. The daemon's sandbox may not.

`ic` moves a run on from whatever phase it is in. So that concurrent clients do not move it several times, they take
turns, and each checks, when its turn has come, that the run is still in the phase that the daemon has checked.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from fluxbudgetctl.calls import call, hints
from fluxbudgetctl.failure import Failure
from fluxbudgetd.wire import codes, messages
from fluxbudgetd.wire.text import fold, one_line, unfold

#: How long `ic` may take, in seconds. It usually takes some milliseconds.
SECONDS = 10.0
# How often the running program, or the lock that another client holds, is polled.
_STEP_SECONDS = 0.02
_MOST_BYTES = 64 * 1024
# A program that writes more than this is not `ic`.
_FLOOD_BYTES = 1 << 20
_DIRECTORY = ".clavain"
_DATABASE = os.path.join(_DIRECTORY, "intercore.db")
# Python turns SIGINT into an exception itself.
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
#: Why intercore did not move a run: the type of the event that it recorded → the reason that `advance` prints.
_REASONS = {"block": "gate_blocked", "pause": "manual_pause"}


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `ic --json run advance` prints. If it has not moved the run, all but `advanced` may be missing."""

    advanced: bool
    from_phase: str | None = None
    to_phase: str | None = None
    event_type: str | None = None
    reason: str | None = None


def advance(allowed: messages.AdvanceAnswer, seconds: float) -> messages.AdvanceAnswer:
    """Run `ic` to move a run that the daemon allows to move; return the answer with the result.

    `seconds` limits each further request to the daemon. Raises `Failure` if `ic` does not say what it has done.
    """
    directory = os.fsdecode(unfold(allowed.ic_directory or ""))
    words = _words(allowed, directory)
    with _turn(directory):
        phase = _shown(allowed, seconds).run.phase
        if phase != allowed.phase:
            line = one_line(f"stale_phase|{allowed.phase}|Phase already advanced to {phase}")
            return msgspec.structs.replace(allowed, line=line, phase=phase)
        result = _result(allowed, *_run(words, directory))
        if not result.advanced:
            reason = _REASONS.get(result.event_type or "", "not_advanced")
            line = one_line(f"{reason}|{result.from_phase or allowed.phase}|{result.reason or 'no reason'}")
            return msgspec.structs.replace(allowed, line=line)
        return _advanced(allowed, result.from_phase or allowed.phase, result.to_phase or "", seconds)


def _advanced(allowed: messages.AdvanceAnswer, before: str, after: str, seconds: float) -> messages.AdvanceAnswer:
    """Return the answer after `ic` has moved a run, with the daemon's new numbers."""
    notes = [allowed.note] if allowed.note else []
    if before != allowed.phase:
        notes.append(f"the run was in {before} when ic moved it")
    answer = msgspec.structs.replace(
        allowed, advanced=True, line=one_line(f"advanced|{before}|{after}"), phase=after, note="; ".join(notes)
    )
    try:
        shown = _shown(allowed, seconds)
    except Failure as failure:
        notes.append(f"ic has moved the run, but the daemon has not seen it yet: {failure.message}")
        return msgspec.structs.replace(answer, note="; ".join(notes))
    completed = [line for line in shown.by_phase if line.name == before and line.state == "completed"]
    return msgspec.structs.replace(answer, spend=shown.spend, completed=completed[0] if completed else None)


def _shown(allowed: messages.AdvanceAnswer, seconds: float) -> messages.RunShowAnswer:
    """Return the run. The request makes the daemon read the database."""
    return call(messages.RunShow(run=allowed.run, hints=hints()), messages.RunShowAnswer, seconds)


def _words(allowed: messages.AdvanceAnswer, directory: str) -> list[str]:
    """Return the command that moves the run; raises `Failure` if there is no `ic` or no database."""
    program = shutil.which("ic")
    if program is None:
        raise Failure(
            f"only intercore moves run {allowed.run}, and its program 'ic' is not on PATH",
            "install intercore, or add the directory of 'ic' to PATH",
            codes.BAD_INPUT,
        )
    # `ic` would create an empty database.
    if not os.path.isfile(os.path.join(directory, _DATABASE)):
        raise Failure(
            f"only intercore moves run {allowed.run}, and its database {os.path.join(directory, _DATABASE)} is gone",
            "restore it, or end the run with 'fluxbudgetctl run finish' and start another one",
            codes.BAD_INPUT,
        )
    words = [os.path.abspath(program), "--json", "run", "advance", os.fsdecode(unfold(allowed.ic_run or ""))]
    if allowed.overridden is not None:
        words.append(f"--skip-reason={os.fsdecode(unfold(allowed.overridden))}")
    return words


@contextmanager
def _turn(directory: str) -> Iterator[None]:
    """Keep other clients from moving runs of this directory's database meanwhile.

    Raises `Failure` if another client takes too long. If the directory cannot be locked, clients do not wait.
    """
    try:
        # Lock the directory, not the database, which SQLite locks.
        fd = os.open(os.path.join(directory, _DIRECTORY), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        _lock(fd)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> None:
    """Lock a file, if its file system supports locks; raises `Failure` if another process keeps it locked."""
    deadline = time.monotonic() + 2 * SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Failure(
                    "another process has been advancing a run of this project for too long",
                    "look for running 'fluxbudgetctl advance' and 'ic' processes",
                    codes.NO_ANSWER,
                ) from None
            time.sleep(_STEP_SECONDS)
        except OSError:
            return
        else:
            return


def _run(words: list[str], directory: str) -> tuple[int, bytes, bytes]:
    """Return the exit code, stdout and stderr of a command; raises `Failure` if it takes too long, or cannot start."""
    # Not pipes: a program that `ic` leaves in the background would keep them open.
    with _ending(), _memory() as out, _memory() as err:
        try:
            process = subprocess.Popen(  # noqa: S603  no shell; the caller's own PATH names the program
                words, cwd=directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0
            )
        except OSError as exc:
            raise Failure(
                f"{words[0]} cannot be started: {exc.strerror}", "check that 'ic version' works", codes.BAD_INPUT
            ) from None
        try:
            code = _ended(process, (out, err))
        finally:
            if process.returncode is None:  # also after a signal, which does not reach another process group
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return code, _beginning(out), _beginning(err)


@contextmanager
def _ending() -> Iterator[None]:
    """Make signals that would end the client raise `SystemExit` meanwhile, so that it ends the program it started."""
    numbers = [number for number in _ENDING_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _ended(process: subprocess.Popen[bytes], files: tuple[IO[bytes], ...]) -> int:
    """Wait for a process and return its exit code; raises `Failure` if it takes too long, or writes too much."""
    deadline = time.monotonic() + SECONDS
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_STEP_SECONDS)
        if time.monotonic() >= deadline:
            raise Failure(
                f"'ic run advance' did not end within {SECONDS:g} s and was killed",
                "see 'ic run status' for the phase that the run is in",
                codes.NO_ANSWER,
            )
        if any(os.fstat(file.fileno()).st_size > _FLOOD_BYTES for file in files):
            raise Failure(
                "'ic run advance' wrote too much and was killed",
                "check that 'ic' is intercore's program; see 'ic run status' for the phase that the run is in",
                codes.BAD_INPUT,
            )


def _memory() -> IO[bytes]:
    """Return a file in memory: a sandbox may leave no directory for temporary files, and a disk may be full."""
    return os.fdopen(os.memfd_create("ic"), "w+b")


def _beginning(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_MOST_BYTES)


def _result(allowed: messages.AdvanceAnswer, code: int, out: bytes, err: bytes) -> _Result:
    """Return what `ic` has printed; raises `Failure` unless it is complete and its exit code agrees."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        result = msgspec.json.decode(out, type=_Result)
        is_complete = not result.advanced or bool(result.from_phase and result.to_phase)
        if is_complete and code == (codes.OK if result.advanced else codes.REFUSED):
            return result
    said = fold(err.strip().partition(b"\n")[0]) or "it printed no result"
    raise Failure(
        f"'ic run advance' failed with exit code {code}: {one_line(said)}",
        f"run 'ic run status {allowed.ic_run}' in {allowed.ic_directory}",
        codes.BAD_INPUT,
    )
