"""Both clients do the same, whatever the answer, the command line, the surroundings, stdin and the state files are.

`FUZZ_EXAMPLES=5000 pytest tests/test_native_fuzz.py` looks longer; `FUZZ_FIRST=20000` besides, elsewhere.
"""

import fcntl
import os
from collections.abc import Iterator

import pytest

from fluxbudgetd.wire.state_names import ALIVE, file_name
from fluxbudgetd.wire.text import fold
from harness import native
from harness.both_clients import Answerer, Surroundings
from harness.daemon import CTL
from harness.odd_answers import ANSWERS, RAW, Dice, framed

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))

pytestmark = [
    pytest.mark.skipif(not native.SOURCES.is_dir(), reason="the sources of the native client are not here"),
    pytest.mark.native,
    pytest.mark.timeout(0 if EXAMPLES else 600),
]


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Surroundings:
    program = native.native_client(tmp_path_factory, request.param)
    return Surroundings(tmp_path_factory.mktemp("both"), tuple(CTL), (str(program),))


def dice(usual: int, both: Surroundings) -> Iterator[tuple[int, Dice]]:
    """Give so many dice, each with its number; the sanitized client has fewer and other ones."""
    sanitized = "sanitized" in str(both.clients["native"])
    first = FIRST + 1_000_000 * sanitized
    for number in range(first, first + (EXAMPLES or usual // (1 + 2 * sanitized))):
        yield number, Dice(number)


def test_same_answer_same_outcome(both: Surroundings) -> None:
    with Answerer(both.home.socket) as answerer:
        for number, die in dice(100, both):
            verb = die.of(*ANSWERS)
            answerer.pieces = die.pieces(verb)
            given = die.input()
            both.require_alike(
                *die.line(verb), environ=die.environment(), given=given, answerer=answerer, number=number
            )


def test_same_command_line_same_outcome(both: Surroundings) -> None:
    with Answerer(both.home.socket) as answerer:
        for number, die in dice(18, both):
            verb = die.of(*ANSWERS)
            answerer.pieces = [framed(ANSWERS[verb])]
            line = die.line(verb, odd=True)
            # Only one of the two asks when the time limit is not right; which, is no matter.
            both.require_alike(*line, environ=die.environment(), given=b"{}", answerer=answerer, number=number)


def test_same_state_files_same_outcome(both: Surroundings) -> None:
    """The socket is not there."""
    for number, die in dice(60, both):
        verb = die.of("remaining", "remaining", "env", "statusline", "statusline", "check", "hook")
        (both.states / "runs" / "r1").write_bytes(die.state_file())
        called = file_name(fold(die.of(*RAW)))
        assert called is not None
        link = both.states / die.of("sessions", "scopes") / called
        link.unlink(missing_ok=True)
        link.symlink_to("../runs/r1")
        environ = {} if die.once_in(2) else die.environment()
        environ |= {"FLUXBUDGET_RUN": "r1"} if die.once_in(2) else {}
        with (both.states / ALIVE).open() as lock:
            if not die.once_in(4):
                fcntl.flock(lock, fcntl.LOCK_EX)
            both.require_alike(*die.line(verb), environ=environ, given=die.input(), number=number)
