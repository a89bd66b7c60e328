"""Any words and variables are either understood or left to the client; none raises."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxbudgetd.server.commands.words import Options, parse
from fluxbudgetd.wire import messages

VERBS = (
    *(b"remaining", b"env", b"check", b"advance", b"ping", b"hook", b"statusline", b"numbers", b"tokens", b"defaults"),
    *(b"status", b""),
)
FLAGS = (
    *(b"--run", b"--scope", b"--session", b"--timeout", b"--json", b"--default", b"--override", b"--require"),
    *(b"--agent", b"--model", b"--complexity", b"--phase"),
    *(b"--from", b"--to", b"--width", b"--no-colour", b"--no-color", b"--help", b"-h", b"--", b"-"),
)
VALUES = (b"r1", b"5", b"0", b"-5", b"1e999", b"nan", b"0x10", b"1_0", "٣".encode(), b" 7 ", b"9" * 4096, b"a=b", b"")

value = st.sampled_from(VALUES) | st.binary(max_size=8)
flag = st.sampled_from(FLAGS)
word = flag | value | st.builds(lambda name, text: name + b"=" + text, flag, value)
words = st.builds(lambda verb, rest: (verb, *rest), st.sampled_from(VERBS), st.lists(word, max_size=6)) | st.just(())
names = st.sampled_from(
    [
        "FLUXBUDGET_RUN",
        "CLAVAIN_BEAD_ID",
        "CLAUDE_SESSION_ID",
        "CLAUDE_CODE_ENTRYPOINT",
        "CLAUDE_CODE_SESSION_ATTENDED",
        "CLAVAIN_SKIP_BUDGET",
        "COLUMNS",
        "NO_COLOR",
        "TERM",
        "X",
    ]
)


@given(words, st.dictionaries(names, value), st.none() | value)
@example((b"remaining", b"--default", b"9" * 4096), {}, None)
def test_any_command_line_is_understood_or_left_to_the_client(
    words: tuple[bytes, ...], env: dict[str, bytes], cwd: bytes | None
) -> None:
    options = parse(messages.Command(words=words, env=env, cwd=cwd), 7)
    assert options is None or isinstance(options, Options)
    if options is None:
        return
    named = [name for name in (options.run, options.scope, options.session) if name is not None]
    assert len(named) <= 1
    assert "" not in (*named, options.override, options.to_phase, *options.hints.sessions)
    assert options.width is None or 0 < options.width < 100_000
    assert bool(options.from_phase) == (options.verb == "advance")
    # What is understood can be sent and shown.
    assert messages.encode(messages.Remaining(hints=options.hints, run=options.run))


def test_flags_are_those_of_the_verb() -> None:
    """The whole command line, with every flag that a verb has."""
    given = (b"check", b"--run", b"r1", b"--timeout=1.5", b"--json", b"--override", b"a b", b"--require")
    options = parse(messages.Command(words=given, env={"TERM": b"xterm", "COLUMNS": b"80"}, cwd=b"/p", wait_ms=7), 7)
    assert options is not None
    assert (options.verb, options.run, options.json, options.override) == ("check", "r1", True, "a b")
    assert (options.require, options.wait_ms, options.width, options.colour) == (True, 7, 80, True)
    assert options.hints == messages.Hints(cwd="/p")


@pytest.mark.parametrize("padding", [b"", b"x" * 4000])
def test_remembered_command_line_belongs_to_no_process(padding: bytes) -> None:
    """A second command with the same words differs in everything else. A long one is not remembered."""
    env = {"CLAUDE_CODE_SESSION_ID": b"s1", "TERM": padding}
    first = parse(messages.Command(words=(b"remaining",), env=env, cwd=b"/p", wait_ms=7, started_ns=3), 1)
    again = parse(messages.Command(words=(b"remaining",), env=env, cwd=b"/p", wait_ms=8, started_ns=4), 2)
    assert first is not None
    assert again is not None
    assert (first.pid, first.wait_ms, first.started_ns) == (1, 7, 3)
    assert (again.pid, again.wait_ms, again.started_ns) == (2, 8, 4)
    assert again.hints == first.hints == messages.Hints(cwd="/p", sessions=("s1",))
    elsewhere = parse(messages.Command(words=(b"remaining",), env=env, cwd=b"/q"), 2)
    assert elsewhere is not None
    assert elsewhere.hints == messages.Hints(cwd="/q", sessions=("s1",))
    other = parse(messages.Command(words=(b"remaining",), env={**env, "CLAUDE_CODE_SESSION_ID": b"s2"}, cwd=b"/p"), 2)
    assert other is not None
    assert other.hints == messages.Hints(cwd="/p", sessions=("s2",))


@pytest.mark.parametrize(
    ("attended", "entrypoint", "expected"),
    [
        (b"1", b"sdk-cli", True),
        (b"0", b"cli", False),
        (b"", b"cli", True),
        (None, b"cli", True),
        (None, b"claude-vscode", True),
        (None, b"sdk-cli", False),
        (None, b"", False),
        (None, None, False),
    ],
)
def test_session_with_a_person(attended: bytes | None, entrypoint: bytes | None, expected: bool) -> None:
    """Claude Code says so itself; of older versions, the entry point shows it."""
    variables = {"CLAUDE_CODE_SESSION_ATTENDED": attended, "CLAUDE_CODE_ENTRYPOINT": entrypoint}
    env = {name: value for name, value in variables.items() if value is not None}
    options = parse(messages.Command(words=(b"hook",), env=env), 7)
    assert options is not None
    assert options.attended == expected
