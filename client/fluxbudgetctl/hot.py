"""The verbs that hooks call: `remaining`, `env`, `check`, `ping`, `hook`, `statusline`.

Nothing is imported here that costs milliseconds: no argparse, no msgspec, no socket module (each as much as the rest of
the answer together). The flags' table serves both the quick parser below and the real one in `cli`, which takes over
for everything that is not a plain, correct use of these flags: `--help`, abbreviations, mistakes.
"""

from __future__ import annotations

from fluxbudgetctl import environment
from fluxbudgetctl.asking import ask
from fluxbudgetctl.connection import NO_SOCKET, not_understood
from fluxbudgetctl.failure import Failure, one_line, say, silence
from fluxbudgetd.wire import codes

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fluxbudgetd.wire.packed import Value

QUICK_SECONDS = 0.2
PATIENT_SECONDS = 1.0
_MAX_SECONDS = 3600.0

NAMING_FLAGS = ("--run", "--scope", "--session")
VERBS: dict[str, tuple[str, ...]] = {
    "remaining": (*NAMING_FLAGS, "--timeout", "--json", "--default"),
    "env": (*NAMING_FLAGS, "--timeout"),
    "check": (*NAMING_FLAGS, "--timeout", "--json", "--override"),
    "ping": ("--timeout", "--json"),
    "hook": (*NAMING_FLAGS, "--timeout"),
    "statusline": (*NAMING_FLAGS, "--timeout", "--width", "--no-colour", "--no-color"),
}
#: The verbs that somebody waits for all day.
QUICK = ("remaining", "hook", "statusline")
#: The flags without a value, and what each is called in `Options`.
_SWITCHES = {"--json": "json", "--no-colour": "no_colour", "--no-color": "no_colour"}

_NO_NUMBERS: dict[str, Value] = dict.fromkeys(
    ("run", "phase", "budget", "spent", "measured", "provisional", "reserved", "pct", "stale_why")
)


_NOTHING = type(None)
#: What an answer has to hold to be believed, in the order in which it is printed: names, and the types of the values.
#: (A state file has neither what was measured nor what is provisional.)
_SPEND: dict[str, tuple[type, ...]] = {
    "budget": (int, _NOTHING),
    "spent": (int,),
    "measured": (int, _NOTHING),
    "provisional": (int, _NOTHING),
    "reserved": (int,),
    "remaining": (int, _NOTHING),
    "pct": (float, int, _NOTHING),
    "state": (str,),
    "stale": (bool,),
    "stale_why": (str, _NOTHING),
}
_RUN: dict[str, tuple[type, ...]] = {"run": (str,), "phase": (str,)}
_CHECK: dict[str, tuple[type, ...]] = {
    **_RUN,
    "allowed": (bool,),
    "refusal": (str, _NOTHING),
    "overridden": (str, _NOTHING),
    "note": (str,),
}
_PING: dict[str, tuple[type, ...]] = {"version": (str,), "protocol": (int,), "pid": (int,), "started_at": (str,)}


class Options:
    """A hot command line. `switches` are those of the flags without a value that it has: `json`, `no_colour`."""

    def __init__(
        self,
        verb: str,
        naming: tuple[str | None, str | None, str | None] = (None, None, None),
        *,
        timeout: float | None = None,
        switches: Collection[str] = (),
        default: int | None = None,
        override: str | None = None,
        width: int | None = None,
    ) -> None:
        self.verb = verb
        self.run, self.scope, self.session = naming
        self.timeout = timeout
        self.json = "json" in switches
        self.colour = "no_colour" not in switches
        self.default = default
        self.override = override
        self.width = width

    def names_none(self) -> bool:
        """Tell whether the environment decides which run is meant."""
        return not (self.run or self.scope or self.session)

    def naming(self) -> dict[str, Value | bytes]:
        """Return the request's fields that say which run is meant."""
        named = (("run", self.run), ("scope", self.scope), ("session", self.session))
        return {**{field: environment.text(name) for field, name in named if name}, "hints": environment.hints()}


def parse(arguments: Sequence[str]) -> Options | None:
    """Return the options of a plain hot command line; None for anything else, which `cli` then explains."""
    flags = VERBS.get(arguments[0] if arguments else "", ())
    found: dict[str, str] = {}
    rest = iter(arguments[1:] if flags else ["not a hot verb"])
    switches: set[str] = set()
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in flags or flag in found:
            return None
        if flag in _SWITCHES:
            if equals or _SWITCHES[flag] in switches:
                return None
            switches.add(_SWITCHES[flag])
            continue
        text = value if equals else next(rest, "")
        if not text or text.startswith("-"):
            return None
        found[flag] = text
    try:
        timeout = seconds(found["--timeout"]) if "--timeout" in found else None
        default = int(found["--default"]) if "--default" in found else None
        width = environment.cells(found["--width"]) if "--width" in found else None
    except ValueError:
        return None
    naming = (found.get("--run"), found.get("--scope"), found.get("--session"))
    if sum(name is not None for name in naming) > 1:
        return None
    return Options(
        arguments[0],
        naming,
        timeout=timeout,
        switches=switches,
        default=default,
        override=found.get("--override"),
        width=width,
    )


def seconds(value: str) -> float:
    """Return a time limit; raises `ValueError` unless it is above 0 and at most an hour."""
    number = float(value)
    if not 0 < number <= _MAX_SECONDS:
        raise ValueError(f"{value} is not a number of seconds above 0 (at most {_MAX_SECONDS:g})")
    return number


def run(options: Options) -> int:
    """Carry out a hot verb; return the exit code."""
    try:
        return _CARRIED_OUT[options.verb](options)
    except Failure as failure:
        return failure.tell()


def limit(options: Options) -> float:
    """Return how many seconds the verb may take."""
    return options.timeout or (QUICK_SECONDS if options.verb in QUICK else PATIENT_SECONDS)


def _remaining(options: Options) -> int:
    try:
        answer = _remainder(options)
    except Failure as failure:
        if failure.exit_code == codes.NO_RUN:
            _print_none(options)
        elif options.default is not None and failure.exit_code in (codes.UNREACHABLE, codes.NO_ANSWER):
            if options.json:
                _print_json({**_NO_NUMBERS, "remaining": options.default, "state": "no_answer", "stale": True})
            else:
                _print(options.default)
            failure.tell()
            return codes.OK
        return failure.tell()
    spend = _spend(answer)
    named = _taken(answer, _RUN)
    if options.json:
        _print_json({**named, **spend})
    else:
        _print(spend["remaining"] or 0)
    return _finish(named, spend)


def _env(options: Options) -> int:
    answer = _remainder(options)
    spend = _spend(answer)
    named = _taken(answer, _RUN)
    left = spend["remaining"]
    if left is not None:
        # To its reader 0 means "no limit", so an exhausted budget is 1.
        _print(f"export FLUX_BUDGET_REMAINING={left or 1}")
    return _finish(named, spend)


def _check(options: Options) -> int:
    asked = _ask("check", options)
    spend = _spend(asked)
    answer = _taken(asked, _CHECK)
    _tell_stale(spend)
    if answer["note"]:
        say(f"fluxbudgetctl: {one_line(str(answer['note']))}")
    if answer["overridden"]:
        say(f"fluxbudgetctl: the budget is exceeded; overridden: {one_line(str(answer['overridden']))}")
    if options.json:
        _print_json({**answer, **spend})
    else:
        _print("ok" if answer["allowed"] else answer["refusal"])
    return codes.OK if answer["allowed"] else codes.REFUSED


def _ping(options: Options) -> int:
    import time  # noqa: PLC0415  no hook pings

    before = time.perf_counter()
    asked = _ask("ping", options)
    took = (time.perf_counter() - before) * 1000
    answer = _taken(asked, _PING)
    if options.json:
        _print_json({**answer, "round_trip_ms": round(took, 3)})
    else:
        _print(f"fluxbudgetd {answer['version']} (pid {answer['pid']}) answered in {took:.2f} ms")
    return codes.OK


def _hook(options: Options) -> int:
    from fluxbudgetctl import hook  # noqa: PLC0415  nobody else pays for it

    return hook.run(options, limit(options))


def _statusline(options: Options) -> int:
    from fluxbudgetctl import statusline  # noqa: PLC0415  likewise

    return statusline.run(options, limit(options))


def _remainder(options: Options) -> dict[str, Value]:
    """Return the answer to `remaining`; the state file's when the socket is out of reach. Raises `Failure`."""
    try:
        return _ask("remaining", options)
    except Failure as failure:
        if failure.code != NO_SOCKET:
            raise
        from fluxbudgetctl import state_file  # noqa: PLC0415  only who may not open a socket needs it

        return state_file.look(options, failure).answer()


def _ask(op: str, options: Options) -> dict[str, Value]:
    fields: dict[str, Value | bytes] = {} if op == "ping" else options.naming()
    if op == "check":
        fields["override"] = environment.text(options.override) if options.override else environment.override()
    return ask(op, fields, limit(options))


def _spend(answer: dict[str, Value]) -> dict[str, Value]:
    spend = answer.get("spend")
    return _taken(spend if isinstance(spend, dict) else {}, _SPEND, "its spend is not whole")


def _taken(
    fields: dict[str, Value], types: dict[str, tuple[type, ...]], otherwise: str = "it is not whole"
) -> dict[str, Value]:
    """Return these fields; raises `Failure` unless each is there and of its type: what is printed may be evaluated."""
    if not all(type(fields.get(name, ...)) in types[name] for name in types):
        raise not_understood(otherwise)
    return {name: fields[name] for name in types}


def _finish(answer: dict[str, Value], spend: dict[str, Value]) -> int:
    _tell_stale(spend)
    if spend["budget"] is None:
        hint = f"set one with 'fluxbudgetctl run set --run {answer['run']} --budget N'"
        return Failure(f"run {answer['run']} has no budget", hint, codes.NO_RUN).tell()
    return codes.OK


def _tell_stale(spend: dict[str, Value]) -> None:
    if spend["stale"]:
        say(f"fluxbudgetctl: last known numbers: {one_line(str(spend['stale_why']))}")


def _print_none(options: Options) -> None:
    if options.json:
        _print_json({**_NO_NUMBERS, "remaining": 0, "state": "no_run", "stale": False})
    else:
        _print(0)


def _print(line: object) -> None:
    """Print a line. Whether anybody reads it changes nothing: `check` refuses a reader that has gone, too."""
    try:
        print(line)
    except BrokenPipeError:  # at once, where stdout has no buffer or the line is longer than that
        silence(1)


def _print_json(value: dict[str, Value]) -> None:
    import json  # noqa: PLC0415  5 ms that only --json pays

    _print(json.dumps(value))


_CARRIED_OUT = {
    "remaining": _remaining,
    "env": _env,
    "check": _check,
    "ping": _ping,
    "hook": _hook,
    "statusline": _statusline,
}
