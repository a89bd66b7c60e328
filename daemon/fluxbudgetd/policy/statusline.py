"""The text for Claude Code's status line: a run's balance in one line that fits.

`executing ██████▋░ 208k/250k 83% (+40k reserved) · 1.8k/min · about 10 min at this rate (stale)`
"""

from collections.abc import Sequence
from typing import NamedTuple

from fluxbudgetd.model import Balance, Run
from fluxbudgetd.policy import burn
from fluxbudgetd.wire import ties
from fluxbudgetd.wire.messages import BudgetState
from fluxbudgetd.wire.short import short

#: What is dropped from a line that is too long, in this order. The percentage (without a budget: the spend) stays.
DROPPED = ("forecast", "reserved", "rate", "bar", "amount", "phase", "stale", "tied")

_CELLS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LONGEST_PHASE = 20
_COLOURS: dict[BudgetState, str] = {"ok": "32", "warning": "33", "exceeded": "1;31", "unlimited": "36"}


class _Part(NamedTuple):
    text: str
    glue: str
    """The text between the previous part and this one."""
    colour: str = ""


def line(
    *,
    run: Run,
    balance: Balance,
    rate: int,
    stale: bool,
    width: int | None,
    colour: bool,
    tied: int = 0,
    unicode: bool = True,
) -> str:
    """Return the line, of at most `width` printable cells (None: no limit), without a newline.

    `tied` is the number of active runs of the directory, if it has several and none was named.
    `rate` is in tokens per minute; 0 is not shown. With `colour`, the bar and the percentage have the colour of the
    state, in SGR sequences, which take no cells. Without `unicode` everything is ASCII.
    """
    parts = _parts(run, balance, rate, stale=stale, unicode=unicode)
    if tied:
        parts["tied"] = _Part(f"(1 of {tied} runs here)", " ")
    for name in DROPPED:
        if width is None or _cells(parts) <= width:
            break
        parts.pop(name, None)
    if width is not None and _cells(parts) > width:
        parts = {name: part._replace(text=part.text[: max(width, 0)]) for name, part in parts.items()}
    return _joined(parts, colour=colour)


def undecided(runs: Sequence[str], *, width: int | None) -> str:
    """Return the line for a directory that is the project of several runs, none of which is hard."""
    line = f"no run: {len(runs)} runs here: {_ascii(ties.listed(runs))}"
    return line if width is None else line[: max(width, 0)]


def _parts(run: Run, balance: Balance, rate: int, *, stale: bool, unicode: bool) -> dict[str, _Part]:
    """Return the parts, in the order of the line."""
    between = " · " if unicode else " | "
    colour = _COLOURS[balance.state]
    # The phase of an ended run does not matter.
    parts = {"phase": _Part(_phase(run.phase if run.status == "active" else run.status, unicode=unicode), "")}
    if balance.budget is None:
        parts["share"] = _Part(short(balance.spent), " ", colour)
    else:
        parts["bar"] = _Part(_bar(balance.spent, balance.budget, unicode=unicode), " ", colour)
        parts["amount"] = _Part(f"{short(balance.spent)}/{short(balance.budget)}", " ")
        parts["share"] = _Part(f"{balance.spent * 100 // balance.budget}%", " ", colour)
    if balance.reserved > 0:
        parts["reserved"] = _Part(f"(+{short(balance.reserved)} reserved)", " ")
    if rate > 0:
        parts["rate"] = _Part(f"{short(rate)}/min", between)
    parts["forecast"] = _Part(_outlook(run, balance, rate), between)
    if stale:
        parts["stale"] = _Part("(stale)", " ")
    return {name: part for name, part in parts.items() if part.text}


def _outlook(run: Run, balance: Balance, rate: int) -> str:
    if balance.budget is None or balance.state != "exceeded":
        return burn.forecast(burn.minutes_left(balance.remaining, rate))
    if run.allowed_to is not None and run.allowed_to > balance.spent:
        return f"{short(run.allowed_to - balance.spent)} more allowed"
    over = balance.spent - balance.budget
    return f"over by {short(over)}" if over > 0 else "budget exceeded"


def _phase(phase: str, *, unicode: bool) -> str:
    # Phases are ASCII, without spaces, by rule. This makes the line's length its width in any case.
    text = _ascii(phase[: _LONGEST_PHASE + 1]).replace(" ", "?")
    if len(text) <= _LONGEST_PHASE:
        return text
    mark = "…" if unicode else "..."
    return text[: _LONGEST_PHASE - len(mark)] + mark


def _ascii(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _bar(spent: int, budget: int, *, unicode: bool) -> str:
    spent = min(spent, budget)
    if not unicode:
        return ("#" * (spent * _CELLS // budget)).ljust(_CELLS, ".")
    full, rest = divmod(spent * _CELLS * 8 // budget, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_CELLS, "░")


def _cells(parts: dict[str, _Part]) -> int:
    return len(_joined(parts, colour=False))


def _joined(parts: dict[str, _Part], *, colour: bool) -> str:
    text = ""
    for part in parts.values():
        painted = colour and part.colour and part.text
        text += part.glue if text else ""
        text += f"\x1b[{part.colour}m{part.text}\x1b[0m" if painted else part.text
    return text
