"""The native client as a pipe: what it sends, how it treats answers, and what it does without one.

A stand-in for the Python client records what it was given. In every test, the native client either does everything
itself (`handed` is None) or hands the call on.
"""

import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import MAX_FRAME, MAX_STDIN, encode_frame
from harness import native
from harness.native import ANSWER, ANSWERED, BRIEF, JSON, PATIENT, SILENT, VERBS, Native, handed
from harness.peer import Connection, Peer, answer, framed
from harness.pipes import open_pipe

pytestmark = native.marks


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Native:
    return Native(native.native_client(tmp_path_factory), tmp_path)


# --- the request


def test_request_is_the_command_line(client: Native) -> None:
    """Words, directory and variables are sent as the bytes that the system gives."""
    environ: dict[str, str | bytes] = {
        "FLUXBUDGET_RUN": b"r\xff",
        "CLAVAIN_BEAD_ID": "b",
        "CLAUDE_CODE_SESSION_ID": "s1",
        "CLAUDE_SESSION_ID": "s2",
        "CLAUDE_CODE_ENTRYPOINT": "cli",
        "CLAUDE_CODE_SESSION_ATTENDED": "1",
        "CLAVAIN_SKIP_BUDGET": "why",
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    before = time.monotonic_ns()
    with client.answering(ANSWER) as peer:
        others = {"OTHER": "x", "FLUXBUDGET_RUN_ID": "x", "TERMINAL": "x"}
        assert client.run("check", b"--run=\xfe", "", *PATIENT, environ={**others, **environ}) == ANSWERED
    (asked,) = peer.served
    assert asked.pop("frames") == 1
    request = messages.decode_request(msgspec.msgpack.encode(asked))
    assert isinstance(request, messages.Command)
    assert 0 < request.wait_ms <= 20_000
    assert before < request.started_ns < time.monotonic_ns()
    assert request == messages.Command(
        wait_ms=request.wait_ms,
        started_ns=request.started_ns,
        words=(b"check", b"--run=\xfe", b"", b"--timeout", b"20"),
        cwd=os.fsencode(client.home),
        env={name: os.fsencode(value) for name, value in environ.items()},
    )


def test_request_without_variables_and_directory(client: Native, tmp_path: Path) -> None:
    """Empty variables count as unset."""
    gone = tmp_path / "gone"
    gone.mkdir()
    script = ["sh", "-c", 'cd "$1" && rmdir "$1" && exec "$2" env', "-", str(gone), str(client.program)]
    with client.answering(ANSWER) as peer:
        environ = {**client.environ, "TERM": "", "FLUXBUDGET_RUN": ""}
        assert subprocess.run(script, env=environ, capture_output=True, check=False).returncode == 3
    assert (peer.served[0]["cwd"], peer.served[0]["env"]) == (None, {})


def test_hundreds_of_words(client: Native) -> None:
    words = [str(number) * 100 for number in range(400)]
    with client.answering(ANSWER) as peer:
        assert client.run("check", *words) == ANSWERED
    assert peer.served[0]["words"] == [word.encode() for word in ("check", *words)]


def test_request_that_is_too_large_is_left_to_python(client: Native) -> None:
    words = ["x" * 100_000] * 11
    with Peer(client.socket, lambda connection: list(connection.frames())) as peer:
        assert handed(client.run("check", *words))[:3] == (["check", *words], b"", None)
    assert peer.served == [[]]


@pytest.mark.parametrize("verb", VERBS)
def test_time_limit_of_each_verb(client: Native, verb: str) -> None:
    with client.answering(ANSWER) as peer:
        for words in ((), PATIENT, ("--timeout=7.5",), ("--override", "x", "--timeout", "0020.")):
            client.run(verb, *words, stdin=subprocess.DEVNULL)
    usual = 200 if verb in ("remaining", "hook", "statusline") else 1000
    limits = [request["wait_ms"] for request in peer.served]
    assert 0 < limits[0] <= usual < limits[2] <= 7500 < limits[1] <= 20_000
    assert 7500 < limits[3] <= 20_000


# --- which command lines


@pytest.mark.parametrize(
    "line",
    [
        *(["env", "--timeout", odd] for odd in ("1_0", " 20", "2e1", "inf", "nan", "0", "0.0", ".", "", "-1", "+20")),
        *(["env", "--timeout", odd] for odd in ("3600.1", "3601", "9" * 40, "0x14", "1.2.3", "٢٠", f"0.{'0' * 30}1")),
        ["env", "--timeout="],
        ["env", "--timeout"],
        ["env", "--timeout", "5", "--timeout", "5"],
        ["env", "--timeout=5", "--timeout=6"],
        [],
        [""],
        ["Remaining"],
        ["--timeout", "5", "remaining"],
        ["status"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_other_command_lines_are_left_to_python(client: Native, line: list[str]) -> None:
    """Nothing is sent or read before that."""
    with Peer(client.socket, lambda _: None) as peer:
        assert handed(client.run(*line, stdin=b"given"))[:3] == (line, b"given", None)
    assert peer.served == []


@pytest.mark.parametrize("verb", VERBS)
def test_command_line_that_the_daemon_does_not_handle(client: Native, verb: str) -> None:
    with client.answering(framed(answer(mine=False))) as peer:
        assert handed(client.run(verb, "--help", stdin=JSON))[:3] == ([verb, "--help"], JSON, None)
    assert len(peer.served) == 1


# --- stdin


def sent(client: Native, stdin: int | bytes, **more: Any) -> tuple[bytes, bool, bool]:
    """Return what is sent of this stdin: the bytes, and the last frame's `more` and `cut`."""
    with client.answering(ANSWER) as peer:
        if isinstance(stdin, bytes):
            assert client.run("hook", *PATIENT, stdin=stdin) == ANSWERED
        else:
            assert client.end(client.start("hook", *PATIENT, stdin=stdin, **more)) == ANSWERED
    (request,) = peer.served
    return request["stdin"], request["more"], request["cut"]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, MAX_STDIN - 1, MAX_STDIN, MAX_STDIN + 1, 2 << 20])
@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_stdin_of_every_size(client: Native, tmp_path: Path, kind: str, size: int) -> None:
    """At most 256 KiB are sent, but everything is read, so that the writer gets no error."""
    data = os.urandom(size)
    expected = (data[:MAX_STDIN], False, size > MAX_STDIN)
    if kind == "pipe":
        assert sent(client, data) == expected
    elif kind == "file":
        (tmp_path / "stdin").write_bytes(data)
        with (tmp_path / "stdin").open("rb") as file:
            assert sent(client, file.fileno()) == expected
    else:
        ours, theirs = socket.socketpair()
        with ours, theirs:

            def write() -> None:
                ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)

            writer = threading.Thread(target=write)
            writer.start()
            assert sent(client, theirs.fileno()) == expected
            writer.join()


def test_stdin_that_cannot_be_read_counts_as_empty(client: Native, tmp_path: Path) -> None:
    """It is closed, a directory, a file that is open only for writing, or a terminal."""
    empty = (b"", False, False)
    assert sent(client, subprocess.DEVNULL) == empty
    assert sent(client, subprocess.DEVNULL, preexec_fn=lambda: os.close(0)) == empty
    master, terminal = os.openpty()
    directory = os.open(tmp_path, os.O_RDONLY)
    writing = os.open(tmp_path / "written", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(master, JSON + b"\n")
        for file in (directory, writing, terminal):
            assert sent(client, file) == empty
    finally:
        for file in (master, terminal, directory, writing):
            os.close(file)


@pytest.mark.parametrize("verb", ["remaining", "env", "check", "advance", "ping"])
def test_other_verbs_leave_stdin_alone(client: Native, tmp_path: Path, verb: str) -> None:
    (tmp_path / "stdin").write_bytes(JSON)
    with client.answering(ANSWER) as peer, (tmp_path / "stdin").open("rb") as file:
        assert client.run(verb, *PATIENT, stdin=file.fileno()) == ANSWERED
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
    assert (peer.served[0]["stdin"], peer.served[0]["more"]) == (b"", False)


def answer_at_once(connection: Connection) -> dict[str, Any]:
    """Answer the first frame."""
    request = next(connection.frames())
    connection.send(ANSWER)
    return request


@pytest.mark.parametrize("verb", ["hook", "statusline"])
def test_answer_is_used_although_stdin_stays_open(client: Native, verb: str) -> None:
    """This holds even if nothing has been written to it."""
    for written in (JSON, b""):
        with open_pipe() as (reading, writing):
            os.write(writing, written)
            with Peer(client.socket, answer_at_once) as peer:
                assert client.run(verb, *PATIENT, stdin=reading) == ANSWERED
        (request,) = peer.served
        assert (request["stdin"], request["more"], request["cut"]) == (written, True, False)


def test_stdin_is_forwarded_while_waiting(client: Native) -> None:
    """Each piece is written only after the previous one has arrived."""
    pieces = [b'{"a": ', b"1", b"}", b"\n"]
    with open_pipe() as (reading, writing):

        def serve(connection: Connection) -> list[dict[str, Any]]:
            frames = []
            for frame in connection.frames():
                frames.append(frame)
                if not frame["more"]:
                    connection.send(ANSWER)
                    break
                if pieces:
                    os.write(writing, pieces.pop(0))
                else:
                    os.close(writing)
            return frames

        with Peer(client.socket, serve) as peer:
            assert client.run("hook", *PATIENT, stdin=reading) == ANSWERED
    (frames,) = peer.served
    assert [frame["op"] for frame in frames] == ["command"] + ["stdin"] * 5
    assert [frame["stdin"] for frame in frames] == [b"", b'{"a": ', b"1", b"}", b"\n", b""]
    assert [frame["more"] for frame in frames] == [True] * 5 + [False]
    for frame in frames:
        messages.decode_request(msgspec.msgpack.encode(frame))


def test_input_is_only_called_cut_at_its_end(client: Native) -> None:
    """`cut` tells the daemon that the writer is done and that it may answer."""
    with open_pipe() as (reading, writing):
        data = b"x" * (MAX_STDIN + 100_000)
        threading.Thread(target=lambda: os.write(writing, data)).start()

        def serve(connection: Connection) -> list[dict[str, Any]]:
            frames: list[dict[str, Any]] = []
            for frame in connection.frames():
                frames.append(frame)
                if sum(len(one["stdin"]) for one in frames) == MAX_STDIN and frame["more"]:
                    os.close(writing)
                if not frame["more"]:
                    connection.send(ANSWER)
                    break
            return frames

        with Peer(client.socket, serve) as peer:
            assert client.run("hook", *PATIENT, stdin=reading) == ANSWERED
    frames = peer.served[0]
    assert [frame["cut"] for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert frames[-1]["stdin"] == b""


def test_endless_stdin_ends_at_the_deadline(client: Native) -> None:
    with Peer(client.socket, lambda connection: len(list(connection.frames()))), Path("/dev/zero").open("rb") as zeros:
        assert client.run("hook", *BRIEF, stdin=zeros.fileno()) == SILENT
        failed = handed(client.run("statusline", *BRIEF, stdin=zeros.fileno()))
    assert (failed.failed, len(failed.stdin)) == ("timeout", MAX_STDIN + 1)


# --- answers


def test_answer_is_written(client: Native, tmp_path: Path) -> None:
    """Every byte arrives unchanged."""
    exports = tmp_path / "exports"
    out, err = bytes(range(256)) * 100, bytes(range(255, -1, -1)) * 100
    with client.answering(framed(answer(exit=255, out=out, err=err, exports=b"export A=1\n"))):
        for verb in VERBS:
            exports.write_bytes(b"export B=1")
            environ = {"CLAUDE_ENV_FILE": str(exports)}
            assert client.run(verb, *PATIENT, stdin=JSON, environ=environ) == (255, out, err, None)
            assert exports.read_bytes() == b"export B=1\nexport A=1\n"


NESTED = b"\x91" * 100_000 + b"\xc0"
GOOD = msgspec.msgpack.encode(answer(exit=3, out=b"1501\n", err=b"note\n"))
ONE_MORE = bytes((GOOD[0] + 1,)) + GOOD[1:]  # the map announces one more field than it has
MORE = {
    "x": [1, -1, 2.5, None, "é", b"\0", {"y": [[]], "mine": 5}],
    "more": 2**64 - 1,
    "error": {"code": 5},
    "": -(2**63),
}


@pytest.mark.parametrize(
    "body",
    [
        GOOD,
        msgspec.msgpack.encode({**MORE, **answer(exit=3, out=b"1501\n", err=b"note\n")}),
        msgspec.msgpack.encode(dict(reversed(answer(exit=3, out=b"1501\n", err=b"note\n").items()))),
        bytes((GOOD[0] + 1,)) + b"\xa1x" + NESTED + GOOD[1:],
        b"\xdf\0\0\0\x07" + GOOD[1:],
        GOOD.replace(b"exit\x03", b"exit\xcf" + b"\0" * 7 + b"\x03"),
        GOOD.replace(b"out\xc4\x05", b"out\xc6\0\0\0\x05"),
        msgspec.msgpack.encode(answer(exit=3, out=b"1501\n", err=b"note\n", x="x" * (MAX_FRAME - 100))),
    ],
    ids=["plain", "unknown fields", "reversed", "nested", "map32", "uint64", "bin32", "large"],
)
def test_answers_of_every_form(client: Native, body: bytes) -> None:
    """Unknown fields are skipped, however deep they are nested; widths and order do not matter."""
    with client.answering(encode_frame(body) + b"more"):
        assert client.run("env", *PATIENT) == ANSWERED


def test_answer_byte_by_byte(client: Native) -> None:
    with client.answering(*(bytes((byte,)) for byte in ANSWER)):
        assert client.run("env", *PATIENT) == ANSWERED


def test_answer_before_the_request_is_read(client: Native) -> None:
    """The answer is used although the request is never read."""
    for verb, size in (("env", 0), ("hook", 1_000_000)):
        with Peer(client.socket, lambda connection: connection.send(ANSWER)):
            assert client.run(verb, *PATIENT, stdin=b"x" * size)[:1] == (3,)


def with_field(name: str, value: object) -> bytes:
    return framed(answer(**{"out": b"out", "err": b"err", name: value}))


ODD: list[Any] = [None, "text", [], {}, 2.5]
FIELDS = ("mine", "exit", "out", "err", "exports")


@pytest.mark.parametrize(
    "data",
    [
        *(with_field(name, value) for name in FIELDS for value in ODD),
        *(with_field("exit", value) for value in (-1, 256, 2**32, 2**63, True, b"\0")),
        *(with_field("mine", value) for value in (0, 1, b"\1")),
        *(with_field("op", value) for value in ("remaining", "commander", "comman", "", None, b"command", 0)),
        *(with_field("ok", value) for value in (None, 1, "true")),
        *(framed({key: value for key, value in answer(out=b"o").items() if key != name}) for name in answer()),
        *(encode_frame(ONE_MORE + again) for again in (b"\xa4exit\x03", b"\xa2ok\xc3")),
        framed([answer()]),
        framed("text"),
        encode_frame(ONE_MORE + b"\x05\x06"),
        encode_frame(ONE_MORE + b"\xc4\x01x\x06"),
        encode_frame(GOOD + b"\xc0"),
        *(encode_frame(GOOD[:size]) for size in (1, 2, 5, len(GOOD) // 2, len(GOOD) - 1)),
        *(encode_frame(bytes((GOOD[0] + 1,)) + GOOD[1:] + b"\xa1x" + bytes((kind,))) for kind in (0xC1, 0xC7, 0xCA)),
        *(
            encode_frame(bytes((GOOD[0] + 1,)) + GOOD[1:] + b"\xa1x" + head)
            for head in (b"\xdd\xff\xff\xff\xff", b"\xdb")
        ),
        *(length.to_bytes(4, "big") + GOOD for length in (0, MAX_FRAME + 1, 2**32 - 1, len(GOOD) - 1)),
        framed({"ok": False}),
        framed({"ok": False, "error": "busy"}),
        framed({"ok": False, "error": {"message": "m"}}),
        *(
            framed({"ok": False, "error": {"code": code}})
            for code in ("", "a b", "a\0b", "é", "a\n", "x" * 65, 5, b"busy")
        ),
        encode_frame(b"\x82\xa2ok\xc2\xa5error\x82\xa4code\xa1a\xa4code\xa1a"),
    ],
)
def test_answer_that_breaks_the_protocol(client: Native, data: bytes) -> None:
    """No part of such an answer is used."""
    with client.answering(data):
        assert handed(client.run("env", *PATIENT)).failed == "garbage"
