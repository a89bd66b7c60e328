"""Forward command lines as a client does, without a client process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fluxbudgetd.wire import messages
from harness.daemon import PATIENCE, Home


class Outcome(NamedTuple):
    """What a client writes, and its exit code."""

    exit: int
    out: str = ""
    err: str = ""
    exports: str = ""


def forwarded(
    home: Home,
    *words: str | bytes,
    cwd: Path | bytes | None = None,
    env: Mapping[str, str | bytes] | None = None,
    **fields: Any,
) -> messages.Command:
    """Return the request for a command line, by default in the project's directory and with a long time limit."""
    return messages.Command(
        words=tuple(map(_raw, words)),
        cwd=cwd if isinstance(cwd, bytes) else str(cwd or home.project).encode(),
        env={name: _raw(value) for name, value in (env or {}).items()},
        **{"wait_ms": int(PATIENCE * 1000), **fields},
    )


def carried_out(answer: object) -> Outcome:
    """Return the outcome of a command's answer; fail if the daemon did not carry it out."""
    assert isinstance(answer, messages.CommandAnswer), answer
    assert answer.mine
    return Outcome(answer.exit, answer.out.decode(), answer.err.decode(), answer.exports.decode())


def outcome(home: Home, *words: str | bytes, **more: Any) -> Outcome:
    """Have the daemon carry out a command line."""
    return carried_out(home.ask(forwarded(home, *words, **more)))


def is_mine(home: Home, *words: str | bytes, **more: Any) -> bool:
    """Return True if the daemon carries out this command line; if not, require that nothing else is in its answer."""
    answer = home.ask(forwarded(home, *words, **more))
    assert isinstance(answer, messages.CommandAnswer), answer
    assert answer.mine or answer == messages.CommandAnswer(mine=False)
    return answer.mine


def _raw(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode()
