"""The verbs that hooks call: `remaining`, `env`, `check`, `ping`.

Nothing is imported here that costs milliseconds: no argparse, no msgspec, no socket module (each as much as the rest of
the answer together). The flags' table serves both the quick parser below and the real one in `cli`, which takes over
for everything that is not a plain, correct use of these flags: `--help`, abbreviations, mistakes.
"""

from __future__ import annotations

from fluxbudgetctl import environment
from fluxbudgetctl.connection import exchange, not_understood
from fluxbudgetctl.failure import Failure, one_line, refused, say
from fluxbudgetd.wire import codes
from fluxbudgetd.wire.packed import PackedError, Value, pack, unpack

TYPE_CHECKING = False  # typing and collections.abc cost milliseconds; type checkers know this name
if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK_SECONDS = 0.2
PATIENT_SECONDS = 1.0
_MAX_SECONDS = 3600.0

NAMING_FLAGS = ("--run", "--scope", "--session")
VERBS: dict[str, tuple[str, ...]] = {
    "remaining": (*NAMING_FLAGS, "--timeout", "--json", "--default"),
    "env": (*NAMING_FLAGS, "--timeout"),
    "check": (*NAMING_FLAGS, "--timeout", "--json", "--override"),
    "ping": ("--timeout", "--json"),
}


_NO_NUMBERS: dict[str, Value] = dict.fromkeys(
    ("run", "phase", "budget", "spent", "measured", "provisional", "reserved", "pct", "stale_why")
)


_SPEND = {"budget", "spent", "measured", "provisional", "reserved", "remaining", "pct", "state", "stale", "stale_why"}


class Options:
    """A hot command line."""

    def __init__(
        self,
        verb: str,
        naming: tuple[str | None, str | None, str | None] = (None, None, None),
        *,
        timeout: float | None = None,
        json: bool = False,
        default: int | None = None,
        override: str | None = None,
    ) -> None:
        self.verb = verb
        self.run, self.scope, self.session = naming
        self.timeout = timeout
        self.json = json
        self.default = default
        self.override = override


def parse(arguments: Sequence[str]) -> Options | None:
    """Return the options of a plain hot command line; None for anything else, which `cli` then explains."""
    flags = VERBS.get(arguments[0] if arguments else "", ())
    found: dict[str, str] = {}
    rest = iter(arguments[1:] if flags else ["not a hot verb"])
    as_json = False
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag not in flags or flag in found:
            return None
        if flag == "--json":
            if equals or as_json:
                return None
            as_json = True
            continue
        text = value if equals else next(rest, "")
        if not text or text.startswith("-"):
            return None
        found[flag] = text
    try:
        timeout = seconds(found["--timeout"]) if "--timeout" in found else None
        default = int(found["--default"]) if "--default" in found else None
    except ValueError:
        return None
    naming = (found.get("--run"), found.get("--scope"), found.get("--session"))
    if sum(name is not None for name in naming) > 1:
        return None
    return Options(
        arguments[0], naming, timeout=timeout, json=as_json, default=default, override=found.get("--override")
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
        if options.verb == "ping":
            return _ping(options)
        if options.verb == "check":
            return _check(options)
        return _env(options) if options.verb == "env" else _remaining(options)
    except Failure as failure:
        return failure.tell()
    except (KeyError, TypeError) as exc:
        return not_understood(f"{type(exc).__name__} {exc}").tell()


def _remaining(options: Options) -> int:
    try:
        answer = _ask("remaining", options, QUICK_SECONDS)
    except Failure as failure:
        if failure.exit_code == codes.NO_RUN:
            _print_none(options)
        elif options.default is not None and failure.exit_code in (codes.UNREACHABLE, codes.NO_ANSWER):
            if options.json:
                _print_json({**_NO_NUMBERS, "remaining": options.default, "state": "no_answer", "stale": True})
            else:
                print(options.default)
            failure.tell()
            return codes.OK
        return failure.tell()
    spend = _spend(answer)
    if options.json:
        _print_json({"run": answer["run"], "phase": answer["phase"], **spend})
    else:
        print(spend["remaining"] or 0)
    return _finish(answer, spend)


def _env(options: Options) -> int:
    answer = _ask("remaining", options, PATIENT_SECONDS)
    spend = _spend(answer)
    left = spend["remaining"]
    if left is not None:
        # To its reader 0 means "no limit", so an exhausted budget is 1.
        print(f"export FLUX_BUDGET_REMAINING={left or 1}")
    return _finish(answer, spend)


def _check(options: Options) -> int:
    answer = _ask("check", options, PATIENT_SECONDS)
    spend = _spend(answer)
    _tell_stale(spend)
    if answer["note"]:
        say(f"fluxbudgetctl: {one_line(str(answer['note']))}")
    if answer["overridden"]:
        say(f"fluxbudgetctl: the budget is exceeded; overridden: {one_line(str(answer['overridden']))}")
    if options.json:
        names = ("run", "phase", "allowed", "refusal", "overridden", "note")
        _print_json({**{name: answer[name] for name in names}, **spend})
    else:
        print("ok" if answer["allowed"] else answer["refusal"])
    return codes.OK if answer["allowed"] else codes.REFUSED


def _ping(options: Options) -> int:
    import time  # noqa: PLC0415  no hook pings

    before = time.perf_counter()
    answer = _ask("ping", options, PATIENT_SECONDS)
    took = (time.perf_counter() - before) * 1000
    if options.json:
        names = ("version", "protocol", "pid", "started_at")
        _print_json({**{name: answer[name] for name in names}, "round_trip_ms": round(took, 3)})
    else:
        print(f"fluxbudgetd {answer['version']} (pid {answer['pid']}) answered in {took:.2f} ms")
    return codes.OK


def _ask(op: str, options: Options, limit: float) -> dict[str, Value]:
    timeout = options.timeout or limit
    request: dict[str, Value] = {"v": codes.VERSION, "op": op, "wait_ms": int(timeout * 1000)}
    if op != "ping":
        names = ("run", "scope", "session")
        request |= {name: environment.text(getattr(options, name)) for name in names if getattr(options, name)}
        request["hints"] = environment.hints()
    if op == "check":
        request["override"] = environment.text(options.override) if options.override else environment.override()
    body = exchange(environment.socket(), pack(request), timeout)
    try:
        answer = unpack(body)
    except PackedError as exc:
        raise not_understood(str(exc)) from None
    if not isinstance(answer, dict):
        raise not_understood("it is not a map")
    if answer.get("ok") is not True:
        raise refused(answer.get("error"))
    return answer


def _spend(answer: dict[str, Value]) -> dict[str, Value]:
    spend = answer.get("spend")
    if not isinstance(spend, dict) or not spend.keys() >= _SPEND:
        raise not_understood("its spend is not whole")
    return spend


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
        print(0)


def _print_json(value: dict[str, Value]) -> None:
    import json  # noqa: PLC0415  5 ms that only --json pays

    print(json.dumps(value))
