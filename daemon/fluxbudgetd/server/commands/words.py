"""A forwarded command line: its words and variables as options.

Only plain, correct command lines are parsed. Anything else (help, mistakes, abbreviations, very long words) is left to
the Python client, which also explains what is wrong.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from fluxbudgetd.wire import messages as wire
from fluxbudgetd.wire.stops import is_attended
from fluxbudgetd.wire.text import fold

_NAMING = ("--run", "--scope", "--session")
#: The verbs and their flags.
_FLAGS: dict[str, frozenset[str]] = {
    "remaining": frozenset({*_NAMING, "--timeout", "--json", "--default"}),
    "env": frozenset({*_NAMING, "--timeout"}),
    "check": frozenset({*_NAMING, "--timeout", "--json", "--override", "--require"}),
    "advance": frozenset({*_NAMING, "--timeout", "--json", "--override", "--from", "--to"}),
    "ping": frozenset({"--timeout", "--json"}),
    "numbers": frozenset({*_NAMING, "--timeout", "--json"}),
    "tokens": frozenset({"--timeout", "--session", "--agent", "--model"}),
    "defaults": frozenset({"--timeout", "--json", "--complexity", "--phase"}),
    "hook": frozenset({*_NAMING, "--timeout"}),
    "statusline": frozenset({*_NAMING, "--timeout", "--width", "--no-colour", "--no-color"}),
}
#: Verbs that need one of these flags.
_REQUIRED = {"advance": frozenset({"--from"}), "tokens": frozenset({"--session", "--agent"})}
#: At most one flag of each of these groups may be given.
_EXCLUSIVE = (frozenset(_NAMING), frozenset({"--complexity", "--phase"}))
_SWITCHES = frozenset({"--json", "--require", "--no-colour", "--no-color"})
# Converting a text that is not UTF-8 takes about 0.2 µs per byte.
_LONGEST_TEXT = 4096
# Longer command lines are not remembered, so that the memory for them stays bounded.
_LONGEST_REMEMBERED = 2048
_MAX_SECONDS = 3600.0
_MOST_DIGITS_OF_WIDTH = 5


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a command line. `hints`, and the defaults of some flags, come from its variables.

    `pid` is the client's process.
    """

    verb: str
    pid: int
    wait_ms: int
    started_ns: int
    run: str | None
    scope: str | None
    session: str | None
    hints: wire.Hints
    attended: bool
    json: bool
    default: int | None
    require: bool
    override: str | None
    from_phase: str
    to_phase: str | None
    agent: str | None
    model: str | None
    complexity: int | None
    phase: str | None
    width: int | None
    colour: bool


def parse(command: wire.Command, pid: int) -> Options | None:
    """Return the options of a process's plain command line, or None."""
    words, cwd, variables = command.words, command.cwd, tuple(command.env.items())
    size = sum(map(len, words)) + len(cwd or b"") + sum(len(value) for _, value in variables)
    parsed = (_remembered if size <= _LONGEST_REMEMBERED else _parsed)(words, cwd, variables)
    if parsed is None:
        return None
    return msgspec.structs.replace(parsed, pid=pid, wait_ms=command.wait_ms, started_ns=command.started_ns)


def _parsed(words: tuple[bytes, ...], cwd: bytes | None, items: tuple[tuple[str, bytes], ...]) -> Options | None:
    """Return the options of a plain command line in any process, or None."""
    variables = dict(items)
    try:
        verb, flags = _flags(words)
        _check_timeout(flags.get("--timeout", "1"))
        return Options(
            verb=verb,
            pid=0,
            wait_ms=0,
            started_ns=0,
            run=flags.get("--run"),
            scope=flags.get("--scope"),
            session=flags.get("--session"),
            hints=_hints(cwd, variables),
            attended=is_attended(
                _variable(variables, "CLAUDE_CODE_SESSION_ATTENDED"), _variable(variables, "CLAUDE_CODE_ENTRYPOINT")
            ),
            json="--json" in flags,
            default=int(flags["--default"]) if "--default" in flags else None,
            require="--require" in flags,
            override=flags.get("--override") or _variable(variables, "CLAVAIN_SKIP_BUDGET"),
            from_phase=flags.get("--from", ""),
            to_phase=flags.get("--to"),
            agent=flags.get("--agent"),
            model=flags.get("--model"),
            complexity=_complexity(flags["--complexity"]) if "--complexity" in flags else None,
            phase=flags.get("--phase"),
            width=_width(flags["--width"]) if "--width" in flags else _columns(variables),
            colour=not (
                "--no-colour" in flags
                or "--no-color" in flags
                or variables.get("NO_COLOR")
                or variables.get("TERM") == b"dumb"
            ),
        )
    except ValueError:
        return None


# Hooks send the same few command lines again and again, and parsing takes a fifth of an answer's time.
_remembered = lru_cache(maxsize=64)(_parsed)


def _flags(words: Iterable[bytes]) -> tuple[str, dict[str, str]]:
    """Return the verb, and the given flags with their values; raise `ValueError` for an unusual command line."""
    rest = map(_text, words)
    verb = next(rest, "")
    allowed = _FLAGS.get(verb, frozenset())
    given: dict[str, str] = {}
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag not in allowed or flag in given:
            raise ValueError(word)
        if flag not in _SWITCHES:
            value = value if equals else next(rest, "")
            if not value or value.startswith("-"):
                raise ValueError(word)
        elif equals:
            raise ValueError(word)
        given[flag] = value
    required = _REQUIRED.get(verb)
    is_complete = required is None or bool(given.keys() & required)
    if not allowed or not is_complete or any(len(given.keys() & flags) > 1 for flags in _EXCLUSIVE):
        raise ValueError(verb)
    return verb, given


def _hints(cwd: bytes | None, variables: Mapping[str, bytes]) -> wire.Hints:
    sessions = _variable(variables, "CLAUDE_CODE_SESSION_ID"), _variable(variables, "CLAUDE_SESSION_ID")
    return wire.Hints(
        run=_variable(variables, "FLUXBUDGET_RUN"),
        scope=_variable(variables, "CLAVAIN_BEAD_ID"),
        sessions=tuple(session for session in sessions if session is not None),
        cwd=None if cwd is None else _text(cwd),
    )


def _variable(variables: Mapping[str, bytes], name: str) -> str | None:
    """Return a variable's value; None if it is unset or empty."""
    value = variables.get(name)
    return _text(value) if value else None


def _text(raw: bytes) -> str:
    if len(raw) > _LONGEST_TEXT:
        raise ValueError("a word or a variable is too long")
    return fold(raw)


def _check_timeout(text: str) -> None:
    """Raise `ValueError` unless this is a number of seconds above 0, and at most an hour."""
    if not 0 < float(text) <= _MAX_SECONDS:
        raise ValueError(text)


def _complexity(text: str) -> int:
    """Return a complexity; raise `ValueError` unless it is a whole number that a request can carry."""
    number = int(text)
    if not abs(number) <= wire.MAX_TOKENS:
        raise ValueError(text)
    return number


def _width(text: str) -> int:
    """Return a width in cells; raise `ValueError` unless it is a whole number above 0 of at most five digits."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS_OF_WIDTH else 0
    if number < 1:
        raise ValueError(text)
    return number


def _columns(variables: Mapping[str, bytes]) -> int | None:
    if not variables.get("COLUMNS"):
        return None
    try:
        return _width(_text(variables["COLUMNS"]))
    except ValueError:
        return None
