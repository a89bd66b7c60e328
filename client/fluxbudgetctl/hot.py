"""The hot verbs, which shell hooks call: `remaining`, `env`, `check`, `ping`, `hook`, `statusline`.

This module imports nothing that costs milliseconds: argparse, msgspec or the socket module would each take as long as
the rest of the answer. Its table of flags serves the quick parser below and the full one in `cli`, which takes over for
anything but a plain, correct use of these flags: `--help`, abbreviations, mistakes.
"""

from __future__ import annotations

from fluxbudgetctl import environment
from fluxbudgetctl.connection import NO_SOCKET, not_understood
from fluxbudgetctl.failure import Failure, discard, print_stderr
from fluxbudgetctl.request import ask
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.text import one_line

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from fluxbudgetd.wire.packed import Value

QUICK_SECONDS = 0.2
DEFAULT_SECONDS = 1.0
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
#: The verbs that are called most often; they get the shorter time limit.
QUICK = ("remaining", "hook", "statusline")
#: The flags without a value, and their names in `Options`.
_SWITCHES = {"--json": "json", "--no-colour": "no_colour", "--no-color": "no_colour"}

_NO_NUMBERS: dict[str, Value] = dict.fromkeys(
    ("run", "phase", "budget", "spent", "measured", "provisional", "reserved", "pct", "stale_why")
)


_NOTHING = type(None)
#: The fields an answer must have, with the types of their values, in the order in which they are printed.
#: (`measured` and `provisional` are None when the numbers come from a state file.)
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
    """A hot command line. `switches` names the given flags without a value: `json`, `no_colour`."""

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

    def naming(self) -> dict[str, Value | bytes]:
        """Return the fields of a request that say which run is meant."""
        named = (("run", self.run), ("scope", self.scope), ("session", self.session))
        return {**{field: environment.text(name) for field, name in named if name}, "hints": environment.hints()}


def parse(arguments: Sequence[str]) -> Options | None:
    """Return the options of a plain hot command line; None for anything else, which `cli` then handles."""
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
    """Return a time limit in seconds; raises `ValueError` unless it is above 0 and at most an hour."""
    number = float(value)
    if not 0 < number <= _MAX_SECONDS:
        raise ValueError(f"{value} is not a number of seconds above 0 (at most {_MAX_SECONDS:g})")
    return number


def run(options: Options) -> int:
    """Carry out a hot verb and return the exit code."""
    try:
        return _RUN_VERB[options.verb](options)
    except Failure as failure:
        return failure.report()


def limit(options: Options) -> float:
    """Return the verb's time limit in seconds."""
    return options.timeout or (QUICK_SECONDS if options.verb in QUICK else DEFAULT_SECONDS)


def _remaining(options: Options) -> int:
    try:
        answer = _ask_remaining(options)
    except Failure as failure:
        if failure.exit_code == codes.NO_RUN:
            _print_no_run(options)
        elif options.default is not None and failure.exit_code in (codes.UNREACHABLE, codes.NO_ANSWER):
            if options.json:
                _print_json({**_NO_NUMBERS, "remaining": options.default, "state": "no_answer", "stale": True})
            else:
                _print(options.default)
            failure.report()
            return codes.OK
        return failure.report()
    spend = _spend(answer)
    run = _required(answer, _RUN)
    if options.json:
        _print_json({**run, **spend})
    else:
        _print(spend["remaining"] or 0)
    return _finish(run, spend)


def _env(options: Options) -> int:
    answer = _ask_remaining(options)
    spend = _spend(answer)
    run = _required(answer, _RUN)
    left = spend["remaining"]
    if left is not None:
        # Its readers take 0 as "no limit", so an exhausted budget is 1.
        _print(f"export FLUX_BUDGET_REMAINING={left or 1}")
    return _finish(run, spend)


def _check(options: Options) -> int:
    fields = _ask("check", options)
    spend = _spend(fields)
    answer = _required(fields, _CHECK)
    _report_stale(spend)
    if answer["note"]:
        print_stderr(f"fluxbudgetctl: {one_line(str(answer['note']))}")
    if answer["overridden"]:
        print_stderr(f"fluxbudgetctl: the budget is exceeded; overridden: {one_line(str(answer['overridden']))}")
    if options.json:
        _print_json({**answer, **spend})
    else:
        _print("ok" if answer["allowed"] else answer["refusal"])
    return codes.OK if answer["allowed"] else codes.REFUSED


def _ping(options: Options) -> int:
    import time  # noqa: PLC0415  only `ping` needs it

    before = time.perf_counter()
    fields = _ask("ping", options)
    took = (time.perf_counter() - before) * 1000
    answer = _required(fields, _PING)
    if options.json:
        _print_json({**answer, "round_trip_ms": round(took, 3)})
    else:
        _print(f"fluxbudgetd {answer['version']} (pid {answer['pid']}) answered in {took:.2f} ms")
    return codes.OK


def _hook(options: Options) -> int:
    from fluxbudgetctl import hook  # noqa: PLC0415  only `hook` needs it

    return hook.run(options.naming(), limit(options))


def _statusline(options: Options) -> int:
    from fluxbudgetctl import statusline  # noqa: PLC0415  only `statusline` needs it

    return statusline.run(options.naming(), limit(options), width=options.width, colour=options.colour)


def _ask_remaining(options: Options) -> dict[str, Value]:
    """Return the answer to `remaining`, from the state file if the socket cannot be reached; raises `Failure`."""
    try:
        return _ask("remaining", options)
    except Failure as failure:
        if failure.code != NO_SOCKET:
            raise
        from fluxbudgetctl import state_file  # noqa: PLC0415  only needed without a socket

        return state_file.read_state(options.naming(), failure).answer()


def _ask(op: str, options: Options) -> dict[str, Value]:
    fields: dict[str, Value | bytes] = {} if op == "ping" else options.naming()
    if op == "check":
        fields["override"] = environment.text(options.override) if options.override else environment.override()
    return ask(op, fields, limit(options))


def _spend(answer: dict[str, Value]) -> dict[str, Value]:
    spend = answer.get("spend")
    return _required(spend if isinstance(spend, dict) else {}, _SPEND, "its spend is incomplete")


def _required(
    fields: dict[str, Value], types: dict[str, tuple[type, ...]], problem: str = "it is incomplete"
) -> dict[str, Value]:
    """Return these fields; raises `Failure` if one is missing or of the wrong type.

    The check protects the caller, who may evaluate what is printed.
    """
    if not all(type(fields.get(name, ...)) in types[name] for name in types):
        raise not_understood(problem)
    return {name: fields[name] for name in types}


def _finish(answer: dict[str, Value], spend: dict[str, Value]) -> int:
    """Report on stderr that a printed answer is stale or that the run has no budget; return the exit code."""
    _report_stale(spend)
    if spend["budget"] is None:
        hint = f"set one with 'fluxbudgetctl run set --run {answer['run']} --budget N'"
        return Failure(f"run {answer['run']} has no budget", hint, codes.NO_RUN).report()
    return codes.OK


def _report_stale(spend: dict[str, Value]) -> None:
    if spend["stale"]:
        print_stderr(f"fluxbudgetctl: last known numbers: {one_line(str(spend['stale_why']))}")


def _print_no_run(options: Options) -> None:
    if options.json:
        _print_json({**_NO_NUMBERS, "remaining": 0, "state": "no_run", "stale": False})
    else:
        _print(0)


def _print(line: object) -> None:
    """Print a line. A closed pipe does not change the exit code of a refused `check`."""
    try:
        print(line)
    except BrokenPipeError:  # raised here if stdout is unbuffered or the line exceeds its buffer
        discard(1)


def _print_json(value: dict[str, Value]) -> None:
    import json  # noqa: PLC0415  5 ms that only --json pays

    _print(json.dumps(value))


_RUN_VERB = {
    "remaining": _remaining,
    "env": _env,
    "check": _check,
    "ping": _ping,
    "hook": _hook,
    "statusline": _statusline,
}
