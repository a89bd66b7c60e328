"""The native client against random daemons: it never fails in an undocumented way, and uses only whole answers.

It is compiled with sanitizers, which abort it at the first invalid memory access. `FUZZ_EXAMPLES=5000 pytest
tests/test_native_fuzz.py` runs longer; `FUZZ_FIRST=20000` starts at another seed.
"""

import os
import random
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetd.wire.framing import MAX_FRAME, encode_frame
from harness import native
from harness.native import Native
from harness.peer import Connection, Peer, answer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))

pytestmark = [*native.marks, pytest.mark.timeout(0 if EXAMPLES else 600)]

FAILED = re.compile(r"closed|garbage|timeout|error [!-~]{1,64}|send \d+")
NAMES = ("ok", "op", "mine", "exit", "out", "err", "exports", "error", "code", "x", "", "é")
LEAVES: list[Any] = [None, True, False, 0, 3, 127, 128, 255, 256, 2**32, 2**64 - 1, -1, -(2**63), 0.5, "", "command"]
LEAVES += ["busy", "unknown_op", "a b", "x" * 300, b"", b"\0", b"out\n", b"y" * 70_000]


class Dice(random.Random):
    """Random answers."""

    def value(self, depth: int = 4) -> Any:
        kind = self.randrange(8) if depth else 7
        if kind == 0:
            return [self.value(depth - 1) for _ in range(self.randrange(4))]
        if kind == 1:
            return {self.choice(NAMES): self.value(depth - 1) for _ in range(self.randrange(4))}
        return self.choice(LEAVES)

    def body(self) -> bytes:
        """Return a body: a correct answer, one with changed, missing or repeated fields, a damaged one or garbage."""
        fields = answer(exit=self.randrange(256), out=self.randbytes(self.randrange(99)), err=b"e", exports=b"x=1")
        if self.randrange(4) == 0:
            fields = {"ok": False, "error": {"code": self.choice(("busy", "unknown_op", "odd")), "message": "m"}}
        pairs = list(fields.items())
        for _ in range(self.choice((0, 0, 1, 1, 2))):
            self._change(pairs)
        body = bytes((0x80 | len(pairs),)) + b"".join(msgspec.msgpack.encode(word) for pair in pairs for word in pair)
        place = self.randrange(len(body))
        damaged = (
            body[: place + 1],
            body[:place] + self.randbytes(1) + body[place + 1 :],
            body + self.randbytes(self.randrange(1, 9)),
            self.randbytes(self.randrange(1, 50)),
        )
        return self.choice((body, body, *damaged))

    def _change(self, pairs: list[tuple[str, Any]]) -> None:
        change, index = self.randrange(5), self.randrange(len(pairs))
        if change == 0:
            pairs.append((self.choice(NAMES), self.value()))
        elif change == 1:
            pairs[index] = (pairs[index][0], self.value())
        elif change == 2 and len(pairs) > 1:
            del pairs[index]
        elif change == 3:
            pairs.append(pairs[index])
        else:
            self.shuffle(pairs)

    def data(self) -> bytes:
        """Return what a daemon sends: mostly one frame."""
        body = self.body()
        kind = self.randrange(12)
        if kind == 0:
            length = self.choice((0, 1, len(body) - 1, len(body) + 1, MAX_FRAME, MAX_FRAME + 1, 2**32 - 1))
            return length.to_bytes(4, "big") + body
        frame = encode_frame(body)
        return frame[: self.randrange(len(frame))] if kind == 1 else frame * self.choice((1, 1, 1, 2))

    def pieces(self, data: bytes) -> list[bytes]:
        places = sorted(self.randrange(len(data) + 1) for _ in range(self.choice((0, 0, 1, 3, 10))))
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


#: The client does not check text that it does not use; msgspec does.
NOT_TEXT = "not UTF-8"


def meaning(body: bytes) -> str | None:
    """Return what `read_answers.c` must print for a body; None if it is not an answer."""
    try:
        found = msgspec.msgpack.decode(body)
    except UnicodeDecodeError:
        return NOT_TEXT
    except msgspec.MsgspecError:
        return None
    return _meaning(found) if isinstance(found, dict) and type(found.get("ok")) is bool else None


def _meaning(found: dict[str, Any]) -> str | None:
    if not found["ok"]:
        error = found.get("error")
        return f"error {error.get('code')}" if isinstance(error, dict) else None
    texts = [found.get(name) for name in ("out", "err", "exports")]
    if found.get("op") != "command" or type(found.get("mine")) is not bool:
        return None
    if found["mine"] and (type(found.get("exit")) is not int or not all(type(text) is bytes for text in texts)):
        return None
    return described(found["exit"], *texts) if found["mine"] else "other"


def described(code: int, *texts: Any) -> str:
    """Return what is printed about an answer of the daemon's."""
    out, err, exports = (bytes(text).hex() for text in texts)
    return f"exit={code} out={out} err={err} exports={exports}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile a program that reads many answers."""
    made = tmp_path_factory.mktemp("reader") / "read_answers"
    script = native.compiling()
    here = Path(__file__).parent / "harness" / "read_answers.c"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", *script.WARNINGS, *native.SANITIZED, f"-I{native.SOURCES}"]
    command = [os.environ.get("CC", "cc"), *flags, "-o", str(made), str(here), str(native.SOURCES / "answer.c")]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    return made


def test_only_whole_answers_are_understood(reader: Path) -> None:
    """They are understood as msgspec decodes them."""
    dice = Dice(FIRST)
    bodies = [dice.body() for _ in range(10 * EXAMPLES or 20_000)]
    given = b"".join(struct.pack("=I", len(body)) + body for body in bodies)
    result = subprocess.run([reader], input=given, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode("latin-1").splitlines()
    assert len(lines) == len(bodies)
    kinds = set()
    for body, line in zip(bodies, lines, strict=True):
        kinds.add(re.split("[ =]", line)[0])
        understood = meaning(body)
        assert line in ("garbage", understood) or understood == NOT_TEXT, body
    assert kinds == {"garbage", "error", "other", "exit"}


def test_right_answers_are_understood(reader: Path) -> None:
    """Unknown fields make no difference."""
    dice = Dice(FIRST)
    answers = [answer(mine=dice.choice((True, True, False)), exit=dice.randrange(256)) for _ in range(2000)]
    more = [{f"x{number}": dice.value() for number in range(dice.randrange(3))} for _ in answers]
    bodies = [msgspec.msgpack.encode({**unknown, **known}) for unknown, known in zip(more, answers, strict=True)]
    given = b"".join(struct.pack("=I", len(body)) + body for body in bodies)
    result = subprocess.run([reader], input=given, capture_output=True, check=True)
    assert result.stdout.decode().splitlines() == [meaning(body) for body in bodies]


class RandomDaemon:
    """Sends random data, with or without reading, and may keep the connection open."""

    def __init__(self, dice: Dice) -> None:
        self.data = dice.data()
        self.pieces = dice.pieces(self.data)
        self.reads = dice.randrange(5) > 0
        self.stays = dice.randrange(8) == 0

    def serve(self, connection: Connection) -> None:
        if self.reads:
            connection.command()
        for piece in self.pieces:
            connection.send(piece)
        while self.stays and connection.socket.recv(1 << 16):
            pass

    def understood(self) -> str | None:
        """Return how its answer is understood; None if it sends none."""
        length = int.from_bytes(self.data[:4], "big")
        is_whole = 4 < 4 + length <= len(self.data) and length <= MAX_FRAME
        return meaning(self.data[4 : 4 + length]) if is_whole else None


def test_random_daemons(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """An answer is written unchanged; any other call is handed on, or is a silent hook."""
    client = Native(native.native_client(tmp_path_factory, "sanitized"), tmp_path)
    for number in range(FIRST, FIRST + (EXAMPLES or 150)):
        dice = Dice(number)
        daemon, verb = RandomDaemon(dice), dice.choice(("remaining", "check", "hook", "statusline"))
        with Peer(client.socket, daemon.serve):
            given = dice.randbytes(dice.choice((0, 1, 100, 70_000, 300_000)))
            outcome = client.run(verb, "--timeout", "0.2" if daemon.stays else "20", stdin=given)
        understood = daemon.understood()
        if outcome.handed is not None:
            failed = outcome.handed.failed
            assert outcome[:3] == (99, b"", b""), (number, outcome)
            assert understood == "other" if failed is None else FAILED.fullmatch(failed), (number, outcome)
        elif verb != "hook" or outcome != (0, b"", b"", None):
            written = described(outcome.code, outcome.out, outcome.err, b"")
            assert str(understood).startswith(written) or understood == NOT_TEXT, (number, outcome)
