"""Render what the commands that hooks call print: turn an answer or a failure into a `Reply`.

The daemon uses this when it carries out a command line, and the Python client when it uses a typed request or a state
file. An answer may be a struct of `messages` or any object with the same attributes. This module checks and writes
nothing, and imports nothing that takes milliseconds.
"""

from __future__ import annotations

from fluxbudgetd.wire import codes, ties
from fluxbudgetd.wire.text import one_line

TYPE_CHECKING = False  # typing costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from fluxbudgetd.wire import messages

#: Attributes of an answer, in the order in which `--json` prints them.
SPEND = (
    *("budget", "spent", "measured", "provisional", "reserved"),
    *("remaining", "pct", "state", "stale", "stale_why"),
)
CHECK = ("run", "phase", "allowed", "refusal", "overridden", "note")
#: What the person can decide about an exhausted budget: let the run go on once, end it, or change the budget.
_CHOICES = ("continue", "stop", "adjust")
PING = ("version", "protocol", "pid", "started_at")
ADVANCE = ("run", "advanced", "line", "phase", "completed", "overridden", "note")
COMPLETED = (
    *("name", "records", "pending", "input", "output", "cache_read", "cache_creation", "billing", "total"),
    *("state", "since", "until", "spent", "provisional", "estimate", "estimate_source", "sample_size", "override"),
)

AGENT_TOKENS = ("agent_name", "billing_tokens", "total_tokens", "cache_read")
AGENT_MEAN = ("agent_name", "est_tokens", "est_billing", "sample_size", "source")
DEFAULTS = ("tokens", "source", "sample_size")
_NUMBERS = ("budget", "spent", "reserved", "remaining", "pct", "state")
_TOTALS = ("input", "output", "cache_read", "cache_creation")

_NO_NUMBERS = dict.fromkeys(
    ("run", "phase", "budget", "spent", "measured", "provisional", "reserved", "pct", "stale_why")
)
#: What `env` prints without a run or a budget, so that no earlier value stays.
_UNSET = "unset FLUX_BUDGET_REMAINING\n"


class Reply:
    """What a command line results in. `exports` are lines for the file that `$CLAUDE_ENV_FILE` names."""

    def __init__(self, exit_code: int, out: str = "", err: str = "", exports: str = "") -> None:
        self.exit_code = exit_code
        self.out = out.encode()
        self.err = err.encode()
        self.exports = exports.encode()


def remaining(answer: messages.RemainingAnswer, *, default: int | None = None, as_json: bool = False) -> Reply:
    """Return the reply of `remaining`; `default` is printed for a run without a budget, and 0 if it is None."""
    spend = answer.spend
    left = default if spend.budget is None else spend.remaining
    if as_json:
        fields = {"run": answer.run, "phase": answer.phase, **_fields(spend, SPEND)}
        out = _json({**fields, "remaining": left, **_tied(answer)})
    else:
        out = f"{left or 0}\n"
    return _unless_unlimited(answer, out)


def remaining_failed(
    message: str, hint: str, exit_code: int, *, default: int | None = None, as_json: bool = False
) -> Reply:
    """Return the reply of `remaining` if it was not answered.

    `default` is printed if there is no run (None: 0 is), and, with exit code 0, if the daemon does not answer.
    """
    state = ""
    if exit_code == codes.NO_RUN:
        state = "no_run"
    elif default is not None and exit_code in (codes.UNREACHABLE, codes.NO_ANSWER):
        state, exit_code = "no_answer", codes.OK
    if not state:
        return failed(message, hint, exit_code)
    if as_json:
        fields = {**_NO_NUMBERS, "remaining": default or 0, "state": state, "stale": state == "no_answer"}
        return failed(message, hint, exit_code, _json(fields))
    return failed(message, hint, exit_code, f"{default or 0}\n")


def env(answer: messages.RemainingAnswer) -> Reply:
    """Return the reply of `env`."""
    left = answer.spend.remaining
    # Readers of the variable take 0 as "no limit", so an exhausted budget is 1.
    out = _UNSET if answer.spend.budget is None else f"export FLUX_BUDGET_REMAINING={left or 1}\n"
    return _unless_unlimited(answer, out)


def env_failed(message: str, hint: str, exit_code: int) -> Reply:
    """Return the reply of `env` if it was not answered."""
    return failed(message, hint, exit_code, _UNSET if exit_code == codes.NO_RUN else "")


def check(answer: messages.CheckAnswer, *, as_json: bool = False) -> Reply:
    """Return the reply of `check`."""
    err = _tie(answer) + _stale(answer.spend.stale_why) + _notes(answer.note, answer.overridden)
    if as_json:
        fields = {**_fields(answer, CHECK), "choices": _choices(answer.refusal)}
        out = _json({**fields, **_fields(answer.spend, SPEND), **_tied(answer)})
    else:
        out = "ok\n" if answer.allowed else f"{answer.refusal}\n"
    return Reply(codes.OK if answer.allowed else codes.REFUSED, out, err)


def check_failed(message: str, hint: str, exit_code: int, *, require: bool = False) -> Reply:
    """Return the reply of `check` if it was not answered. With `require`, no run is a refusal."""
    return failed(message, hint, codes.REFUSED if require and exit_code == codes.NO_RUN else exit_code)


def advance(answer: messages.AdvanceAnswer, *, as_json: bool = False) -> Reply:
    """Return the reply of `advance`."""
    err = _stale(answer.spend.stale_why) + _notes(answer.note, answer.overridden)
    if as_json:
        completed = None if answer.completed is None else _fields(answer.completed, COMPLETED)
        fields = {**_fields(answer, ADVANCE), "completed": completed, "choices": _choices(answer.line)}
        out = _json({**fields, "spend": _fields(answer.spend, SPEND)})
    else:
        out = f"{answer.line}\n"
    return Reply(codes.OK if answer.advanced else codes.REFUSED, out, err)


def ping(answer: messages.PingAnswer, took_ms: float | None, *, as_json: bool = False) -> Reply:
    """Return the reply of `ping`; `took_ms` are the milliseconds that the client waited, None if unknown."""
    if as_json:
        took = None if took_ms is None else round(took_ms, 3)
        return Reply(codes.OK, _json({**_fields(answer, PING), "round_trip_ms": took}))
    within = "" if took_ms is None else f" in {took_ms:.2f} ms"
    return Reply(codes.OK, f"fluxbudgetd {answer.version} (pid {answer.pid}) answered{within}\n")


def numbers(answer: messages.RunShowAnswer, *, as_json: bool = False) -> Reply:
    """Return the reply of `numbers`: `key=value` lines about a run; a value is empty if there is none."""
    run, spend, totals = answer.run, answer.spend, answer.totals
    fields: dict[str, object] = {
        **_known(run.id, run.phase, spend),
        "warn_pct": run.warn_pct,
        **{name: getattr(totals, name) for name in _TOTALS},
    }
    for line in answer.by_stage:
        fields |= {f"{line.name}_budget": line.allocated, f"{line.name}_spent": line.spent}
    return _numbers(fields, spend, as_json=as_json)


def known_numbers(state: messages.RemainingAnswer, *, as_json: bool = False) -> Reply:
    """Return the reply of `numbers` from a state file."""
    return _numbers(_known(state.run, state.phase, state.spend), state.spend, as_json=as_json)


def tokens(answer: messages.TokensAnswer) -> Reply:
    """Return the reply of `tokens`: a JSON array, or nothing if it would be empty."""
    rows = [_fields(row, AGENT_TOKENS) for row in answer.used]
    if answer.mean is not None:
        rows.append(_fields(answer.mean, AGENT_MEAN))
    return Reply(codes.OK, _json(rows) if rows else "", _stale(answer.stale_why))


def defaults(answer: messages.DefaultsAnswer, *, as_json: bool = False) -> Reply:
    """Return the reply of `defaults`."""
    return Reply(codes.OK, _json(_fields(answer, DEFAULTS)) if as_json else f"{answer.tokens}\n")


def hook(answer: messages.HookAnswer) -> Reply:
    """Return the reply of `hook`."""
    out = f"{answer.output}\n" if answer.output else ""
    is_open = answer.exports and not answer.exports.endswith("\n")
    return Reply(codes.OK, out, exports=f"{answer.exports}\n" if is_open else answer.exports)


def statusline(answer: messages.StatusLineAnswer) -> Reply:
    """Return the reply of `statusline`."""
    return Reply(codes.OK, f"{answer.line}\n", _stale(answer.stale_why))


def failed(message: str, hint: str, exit_code: int, out: str = "") -> Reply:
    """Return the reply of a command that was not answered: the reason and the hint, each a line on stderr."""
    return Reply(exit_code, out, _reason(message, hint))


def exit_code(code: str) -> int:
    """Return the exit code for an error code of an answer."""
    return codes.ERROR_CODES.get(code, (codes.INTERNAL, ""))[0]


def _unless_unlimited(answer: messages.RemainingAnswer, out: str) -> Reply:
    """Return the reply that prints this; it reports on stderr that the answer is stale or that there is no budget."""
    err = _tie(answer) + _stale(answer.spend.stale_why)
    if answer.spend.budget is not None:
        return Reply(codes.OK, out, err)
    hint = f"set one with 'fluxbudgetctl run set --run {answer.run} --budget N'"
    return Reply(codes.NO_RUN, out, err + _reason(f"run {answer.run} has no budget", hint))


def _reason(message: str, hint: str) -> str:
    return _note(message) + (f"hint: {one_line(hint)}\n" if hint else "")


def _tie(answer: messages.RemainingAnswer | messages.CheckAnswer) -> str:
    """Return the line on stderr about the other runs of the directory."""
    return _note(ties.applies(answer.run, answer.tied)) if answer.tied else ""


def _tied(answer: messages.RemainingAnswer | messages.CheckAnswer) -> dict[str, object]:
    """Return the field of `--json` about the other runs of the directory, if there are any."""
    return {"tied": answer.tied} if answer.tied else {}


def _choices(line: str | None) -> tuple[str, ...]:
    return _CHOICES if line is not None and line.startswith("budget_exceeded|") else ()


def _stale(why: str | None) -> str:
    return _note(f"last known numbers: {why}") if why else ""


def _notes(note: str, overridden: str | None) -> str:
    """Return the lines on stderr about an override that was not accepted, or was."""
    text = _note(note) if note else ""
    return text + (_note(f"the budget is exceeded; overridden: {overridden}") if overridden else "")


def _note(text: str) -> str:
    return f"fluxbudgetctl: {one_line(text)}\n"


def _known(run: str, phase: str, spend: messages.Spend) -> dict[str, object]:
    return {"run": run, "phase": phase, **_fields(spend, _NUMBERS)}


def _numbers(fields: dict[str, object], spend: messages.Spend, *, as_json: bool) -> Reply:
    # Ids and names of phases contain no line break.
    lines = (f"{name}={'' if value is None else value}\n" for name, value in fields.items())
    return Reply(codes.OK, _json(fields) if as_json else "".join(lines), _stale(spend.stale_why))


def _fields(value: object, names: tuple[str, ...]) -> dict[str, object]:
    return {name: getattr(value, name) for name in names}


def _json(value: object) -> str:
    import json  # noqa: PLC0415  5 ms that only --json pays

    return json.dumps(value) + "\n"
