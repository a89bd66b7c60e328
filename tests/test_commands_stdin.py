"""The stdin of forwarded command lines: left open, dripping, cut, empty, never written, or hostile."""

import json
import select
from collections.abc import Awaitable
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import msgspec
import pytest

from fluxbudgetd.server.commands.gathering import Gathering, Input, Patience
from fluxbudgetd.server.requests import MoreInput
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.framing import MAX_FRAME, MAX_STDIN, encode_frame
from harness.commands import Outcome, carried_out, forwarded, outcome
from harness.daemon import PATIENCE, Daemon, Home, Wire, started
from harness.hooks import Claude, launch_input

NO_RUN = 3


@pytest.fixture
def run(home: Home, daemon: Daemon) -> str:
    """Start a run with hard enforcement, too small for any sub-agent, with the session s1, in the project."""
    name = started(home, id="r1", session="s1", token_budget=10, enforcement="hard")
    # Read the numbers once, so that a command with a short time limit has last known ones.
    assert home.spent(name) == 0
    return name


def hook_input(home: Home, **fields: object) -> bytes:
    """Return the input of a launch, which is denied."""
    launch = {"tool_name": "Agent", "tool_input": launch_input("fd-quality"), **fields}
    return json.dumps(Claude(home).hook_input("PreToolUse", **launch)).encode()


def is_denied(found: Outcome) -> bool:
    return found.exit == 0 and json.loads(found.out)["hookSpecificOutput"]["permissionDecision"] == "deny"


def receive(wire: Wire) -> messages.AnyAnswer | messages.ErrorAnswer:
    return messages.decode_answer(wire.receive())


def gathered(home: Home, verb: str, *pieces: bytes, is_open: bool, **fields: Any) -> Outcome:
    """Send a verb from a directory of no run, with stdin in pieces; the last one ends stdin unless `is_open`."""
    *before, last = pieces
    with Wire(home.socket) as wire:
        wire.send(
            forwarded(home, verb, cwd=home.root, more=True, **fields),
            *(messages.Stdin(stdin=piece, more=True) for piece in before),
            messages.Stdin(stdin=last, more=is_open),
        )
        return carried_out(receive(wire))


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_json_is_complete_although_stdin_stays_open(home: Home, run: str, size: int, is_open: bool) -> None:
    raw = hook_input(home)
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert is_denied(gathered(home, "hook", *pieces, is_open=is_open))
    shown = gathered(home, "statusline", *pieces, is_open=is_open)
    assert (shown.exit, "brainstorm" in shown.out) == (0, True)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n \t"])
@pytest.mark.parametrize("after", [b"", b"\r\n", b" " * 1000])
def test_white_space_and_a_byte_order_mark_are_accepted(home: Home, run: str, before: bytes, after: bytes) -> None:
    raw = before + hook_input(home) + after
    assert is_denied(outcome(home, "hook", cwd=home.root, stdin=raw))
    assert is_denied(outcome(home, "hook", cwd=home.root, stdin=raw, more=True))
    assert is_denied(gathered(home, "hook", raw[:2], raw[2:], is_open=True))
    assert outcome(home, "statusline", cwd=home.root, stdin=raw, more=True).exit == 0


def test_unusual_json_is_complete_too(home: Home, run: str) -> None:
    """JavaScript writes half of a surrogate pair if it cuts text in the middle of a character."""
    raw = hook_input(home, prompt="a").replace(b'"a"', rb'"\ud83d"')
    assert is_denied(gathered(home, "hook", raw, is_open=True))
    middle = raw.index(b"}") + 1
    assert is_denied(gathered(home, "hook", raw[:middle], raw[middle:], is_open=True))


def test_hook_whose_stdin_is_never_written(home: Home, run: str) -> None:
    assert outcome(home, "hook", more=True, wait_ms=300) == Outcome(0)
    assert gathered(home, "hook", b" ", is_open=True, wait_ms=300) == Outcome(0)


def test_hook_whose_json_does_not_end(home: Home, run: str) -> None:
    """The answer is an error, so that a client that must fail closed can deny a launch."""
    answer = home.ask(forwarded(home, "hook", stdin=hook_input(home)[:-1], more=True, wait_ms=300))
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "timeout"


def test_input_that_is_too_long_is_answered_although_stdin_stays_open(home: Home, run: str) -> None:
    """The client does not yet know whether there is more than it forwards."""
    raw = hook_input(home)
    beginning = raw[:-1] + b', "prompt": "' + b"x" * MAX_STDIN
    pieces = beginning[:100_000], beginning[100_000:MAX_STDIN]
    assert is_denied(gathered(home, "hook", *pieces, is_open=True, wait_ms=6000))
    assert "brainstorm" in gathered(home, "statusline", *pieces, is_open=True, wait_ms=6000).out


def test_status_line_whose_stdin_is_never_written(home: Home, run: str) -> None:
    """It shows the run of its directory."""
    shown = outcome(home, "statusline", more=True, wait_ms=2000)
    assert (shown.exit, "brainstorm" in shown.out) == (0, True)
    assert outcome(home, "statusline", cwd=home.root, more=True, wait_ms=2000).exit == NO_RUN


def test_status_line_whose_json_does_not_end(home: Home, run: str) -> None:
    """The fields that are complete at the deadline are used."""
    raw = hook_input(home)
    assert gathered(home, "statusline", raw[:-1], is_open=True, wait_ms=4000).exit == 0
    assert gathered(home, "statusline", b'{"session_id": "s', is_open=True, wait_ms=2000).exit == NO_RUN


@pytest.mark.parametrize("verb", ["hook", "statusline"])
def test_empty_stdin(home: Home, run: str, verb: str) -> None:
    expected = outcome(home, verb, cwd=home.project)
    with Wire(home.socket) as wire:
        wire.send(forwarded(home, verb, more=True), messages.Stdin(stdin=b"", more=True), messages.Stdin(stdin=b""))
        assert carried_out(receive(wire)) == expected


def test_cut_input_is_decided_by_the_fields_that_are_complete(home: Home, run: str) -> None:
    raw = b"\xef\xbb\xbf" + hook_input(home, tool_response="x" * 2 * MAX_STDIN)[:MAX_STDIN]
    raw = raw[:MAX_STDIN]
    assert is_denied(outcome(home, "hook", cwd=home.root, stdin=raw, cut=True))
    assert is_denied(outcome(home, "hook", cwd=home.root, stdin=raw, more=False, cut=True))
    assert outcome(home, "statusline", cwd=home.root, stdin=raw, cut=True).exit == 0
    with Wire(home.socket) as wire:
        half = MAX_STDIN // 2
        wire.send(
            forwarded(home, "hook", cwd=home.root, stdin=raw[:half], more=True),
            messages.Stdin(stdin=raw[half:], more=True),
            messages.Stdin(stdin=b"", cut=True),
        )
        assert is_denied(carried_out(receive(wire)))


def test_too_much_stdin_is_refused(home: Home, run: str) -> None:
    whole = messages.Stdin(stdin=b"x" * MAX_STDIN, more=True)
    for requests in (
        [forwarded(home, "hook", more=True), whole, messages.Stdin(stdin=b"x")],
        [forwarded(home, "hook", stdin=b"x" * (MAX_STDIN + 1))],
    ):
        with Wire(home.socket) as wire:
            wire.send(*requests, messages.Ping())
            assert wire.error() == "bad_request"
            assert isinstance(receive(wire), messages.PingAnswer)


def test_another_request_ends_the_command(home: Home, run: str) -> None:
    with Wire(home.socket) as wire:
        wire.send(forwarded(home, "hook", more=True), messages.Ping(), messages.Ping())
        assert wire.error() == "bad_request"
        assert isinstance(receive(wire), messages.PingAnswer)
        wire.send(forwarded(home, "hook", more=True))
        wire.socket.sendall(encode_frame(b"\xc1"))
        assert wire.error() == "bad_request"


def test_stdin_that_no_command_waits_for_is_ignored(home: Home, run: str) -> None:
    """A client may have sent it before the answer arrived."""
    with Wire(home.socket) as wire:
        late = messages.Stdin(stdin=b"x" * 100_000, more=True)
        wire.send(late, forwarded(home, "hook", stdin=hook_input(home), more=True), late, messages.Stdin(stdin=b""))
        wire.send(forwarded(home, "check", "--run", "no-such", more=True), late, messages.Ping())
        assert is_denied(carried_out(receive(wire)))
        assert carried_out(receive(wire)).exit == NO_RUN
        assert isinstance(receive(wire), messages.PingAnswer)


def test_frame_that_is_incomplete_at_the_deadline_is_not_lost(home: Home, run: str) -> None:
    with Wire(home.socket) as wire:
        frame = encode_frame(messages.encode(messages.Stdin(stdin=b'{"session_id": "s1"}')))
        wire.send(forwarded(home, "statusline", more=True, wait_ms=2000))
        wire.socket.sendall(frame[:-5])
        assert carried_out(receive(wire)).exit == 0
        wire.socket.sendall(frame[-5:])
        wire.send(messages.Ping())
        assert isinstance(receive(wire), messages.PingAnswer)


def test_invalid_frame_instead_of_stdin_closes_the_connection(home: Home, run: str) -> None:
    with Wire(home.socket) as wire:
        wire.send(forwarded(home, "hook", more=True))
        wire.socket.sendall((MAX_FRAME + 1).to_bytes(4, "big"))
        assert wire.error() == "too_large"
        with pytest.raises(EOFError):
            wire.receive()


def test_client_that_goes_away_while_the_daemon_waits(home: Home, run: str) -> None:
    for _ in range(20):
        with Wire(home.socket) as wire:
            wire.send(forwarded(home, "hook", stdin=b"{", more=True))
    assert is_denied(outcome(home, "hook", stdin=hook_input(home)))


def test_memory_for_unfinished_stdin_is_bounded(home: Home, run: str, daemon: Daemon) -> None:
    """Small inputs are always accepted."""
    piece = b"{" + b" " * 250_000
    before = daemon.status("VmRSS")
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(home.socket)) for _ in range(100)]
        for wire in wires:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused while it is sent
                wire.send(forwarded(home, "hook", stdin=piece, more=True))
        answered, _, _ = select.select([wire.socket for wire in wires], [], [], PATIENCE)
        refused = next(wire for wire in wires if wire.socket in answered)
        with suppress(ConnectionResetError):
            assert refused.error() == "busy"
        assert is_denied(gathered(home, "hook", hook_input(home), is_open=True))
        assert daemon.status("VmRSS") - before < 60_000
    assert is_denied(gathered(home, "hook", piece[1:], hook_input(home), is_open=False))


@pytest.mark.parametrize(
    "fields",
    [
        {"words": "remaining"},
        {"words": ["remaining"]},
        {"words": [[b"remaining"]]},
        {"words": [b"remaining"], "env": [b"x"]},
        {"words": [b"remaining"], "env": {"COLUMNS": {"a": {"b": b"c"}}}},
        {"words": [b"remaining"], "env": {b"COLUMNS": b"80"}},
        {"words": [b"remaining"], "cwd": "/p"},
        {"words": [b"hook"], "stdin": "text"},
        {"words": [b"hook"], "more": 1},
        {"words": [b"ping"], "started_ns": 1.5},
        {},
    ],
    ids=lambda fields: str(fields)[:50],
)
def test_fields_of_another_type_are_refused(home: Home, daemon: Daemon, fields: dict[str, object]) -> None:
    body = msgspec.msgpack.encode({"v": 1, "op": "command", **fields})
    with Wire(home.socket) as wire:
        wire.socket.sendall(encode_frame(body))
        wire.send(messages.Ping())
        assert wire.error() == "bad_request"
        assert isinstance(receive(wire), messages.PingAnswer)


def test_huge_requests_are_answered(home: Home, run: str) -> None:
    """Fields and variables that the daemon does not know are ignored, whatever their size."""
    many = forwarded(home, "remaining", env={f"VARIABLE_{number}": "x" for number in range(50_000)})
    large = forwarded(home, "remaining", env={"PATH": "x" * 1_000_000})
    words = forwarded(home, *["x"] * 300_000)
    with Wire(home.socket) as wire:
        wire.send(many, large, words)
        assert carried_out(receive(wire)) == carried_out(receive(wire)) == Outcome(0, "10\n")
        assert receive(wire) == messages.CommandAnswer(mine=False)
        body = msgspec.msgpack.encode({"v": 1, "op": "command", "words": [b"ping"]})
        nested = b"\x84" + body[1:] + b"\xa1x" + b"\x91" * 100_000 + b"\xc0"
        wire.socket.sendall(encode_frame(nested))
        assert wire.error() == "bad_request"


def test_dripping_sender_is_parsed_a_limited_number_of_times() -> None:
    """Otherwise, parsing a long input of closing braces would take quadratic time."""
    ended: list[Input] = []

    def finish(found: Input) -> messages.CommandAnswer:
        ended.append(found)
        return messages.CommandAnswer()

    async def body() -> None:
        gathering = Gathering(60_000, Patience(1, 1), finish)
        slow = 0
        for _ in range(3000):
            result = gathering.add(messages.Stdin(stdin=b"}", more=True))
            if isinstance(result, Awaitable):
                slow += 1
                result = await result
            assert isinstance(result, MoreInput)
        assert 50 < slow < 500
        gathering.add(messages.Stdin(stdin=b"\n"))

    anyio.run(body)
    (found,) = ended
    assert (found.data, found.is_whole, found.has_ended) == (b"}" * 3000 + b"\n", True, True)
