"""The status line's text: one line that says the most important things first, and fits."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.policy import budget
from fluxbudgetd.policy.statusline import line
from fluxbudgetd.wire.short import short
from harness.values import a_run

SGR = re.compile(r"\x1b\[([0-9;]*)m")
FULL = "executing ██████▋░ 208k/250k 83% (+40k reserved) · 1.8k/min · about 1 min at this rate (stale)"


def a_line(
    spent: int = 208_000,
    tokens: int | None = 250_000,
    *,
    reserved: int = 0,
    rate: int = 1800,
    phase: str = "executing",
    **fields: Any,
) -> str:
    run = a_run(token_budget=tokens, phase=phase)
    asked = {"stale": False, "width": None, "colour": False, **fields}
    return line(run=run, balance=budget.balance(run, spent, 0, reserved), rate=rate, **asked)


def test_where_a_run_stands() -> None:
    assert a_line() == "executing ██████▋░ 208k/250k 83% · 1.8k/min · about 23 min at this rate"
    assert a_line(reserved=40_000, stale=True) == FULL


@pytest.mark.parametrize("status", ["done", "cancelled"])
def test_of_an_ended_run_the_end_is_told(status: str) -> None:
    run = a_run(token_budget=250_000, phase="executing", status=status)
    balance = budget.balance(run, 208_000)
    shown = line(run=run, balance=balance, rate=0, stale=False, width=None, colour=False)
    assert shown == f"{status} ██████▋░ 208k/250k 83%"


def test_in_ascii() -> None:
    assert a_line(unicode=False) == "executing ######.. 208k/250k 83% | 1.8k/min | about 23 min at this rate"
    assert a_line(unicode=False, phase="x" * 30).split()[0] == "x" * 17 + "..."


def test_nothing_is_said_of_no_rate() -> None:
    assert a_line(rate=0) == "executing ██████▋░ 208k/250k 83%"


def test_what_is_reserved_does_not_remain() -> None:
    assert a_line(reserved=42_000).endswith("83% (+42k reserved) · 1.8k/min · less than a minute at this rate")


def test_exceeded() -> None:
    assert a_line(260_000) == "executing ████████ 260k/250k 104% · 1.8k/min · over by 10k"
    assert a_line(260_000, rate=0) == "executing ████████ 260k/250k 104% · over by 10k"
    assert a_line(250_000, rate=0) == "executing ████████ 250k/250k 100% · budget exceeded"


def test_without_a_budget() -> None:
    assert a_line(tokens=None) == "executing 208k · 1.8k/min"
    assert a_line(tokens=None, reserved=40_000, rate=0, stale=True) == "executing 208k (+40k reserved) (stale)"


@pytest.mark.parametrize(
    ("spent", "bar", "ascii_bar"),
    [
        (0, "░░░░░░░░", "........"),
        (15, "░░░░░░░░", "........"),
        (16, "▏░░░░░░░", "........"),
        (124, "▉░░░░░░░", "........"),
        (125, "█░░░░░░░", "#......."),
        (500, "████░░░░", "####...."),
        (999, "███████▉", "#######."),
        (1000, "████████", "########"),
        (5000, "████████", "########"),
    ],
)
def test_the_bar_is_never_fuller_than_what_is_spent(spent: int, bar: str, ascii_bar: str) -> None:
    assert a_line(spent, 1000).split()[1] == bar
    assert a_line(spent, 1000, unicode=False).split()[1] == ascii_bar


def test_percentages_are_rounded_down() -> None:
    assert a_line(999, 1000, rate=0).split()[-1] == "99%"


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "executing ██████▋░ 208k/250k 83% (+40k reserved) · 1.8k/min (stale)",
        "executing ██████▋░ 208k/250k 83% · 1.8k/min (stale)",
        "executing ██████▋░ 208k/250k 83% (stale)",
        "executing 208k/250k 83% (stale)",
        "executing 83% (stale)",
        "83% (stale)",
        "83%",
        "83",
        "8",
        "",
    ],
)
def test_what_matters_least_gives_way_first(text: str) -> None:
    """Each of these is what fits into its own width."""
    assert a_line(reserved=40_000, stale=True, width=len(text)) == text


def test_without_a_budget_what_is_spent_stays_longest() -> None:
    wide = "executing 208k (+40k reserved) · 1.8k/min"
    texts = [wide, "executing 208k · 1.8k/min", "executing 208k", "208k", "20", ""]
    assert [a_line(tokens=None, reserved=40_000, width=len(text)) for text in texts] == texts
    assert a_line(width=-1) == ""
    assert a_line(width=0, colour=True) == ""


def test_a_long_phase_is_cut() -> None:
    assert a_line(phase="x" * 20).startswith("x" * 20 + " ")
    assert a_line(phase="x" * 21).startswith("x" * 19 + "… ")
    assert a_line(phase="").startswith("██████▋░ 208k")


@pytest.mark.parametrize(
    ("spent", "tokens", "sgr"),
    [(0, 1000, "32"), (799, 1000, "32"), (800, 1000, "33"), (999, 1000, "33"), (1000, 1000, "1;31")],
)
def test_bar_and_percentage_have_the_states_colour(spent: int, tokens: int, sgr: str) -> None:
    shown = a_line(spent, tokens, colour=True)
    coloured = re.findall(rf"\x1b\[{sgr}m([^\x1b]*)\x1b\[0m", shown)
    assert coloured == [a_line(spent, tokens).split()[1], f"{spent * 100 // tokens}%"]
    assert SGR.sub("", shown) == a_line(spent, tokens)


def test_without_a_budget_what_is_spent_is_coloured() -> None:
    assert a_line(tokens=None, colour=True, rate=0) == "executing \x1b[36m208k\x1b[0m"


counts = st.integers(0, 300_000) | st.integers(0, 2**63 - 1)
lines = st.fixed_dictionaries(
    {
        "spent": counts,
        "tokens": st.none() | st.integers(1, 300_000) | st.integers(1, 2**63 - 1),
        "reserved": st.just(0) | counts,
        "rate": st.just(0) | counts,
        "phase": st.text(max_size=30) | st.sampled_from(["executing", "a\nb", "\x1b[2J", "計画", " a ", "x" * 64]),
        "stale": st.booleans(),
        "unicode": st.booleans(),
    }
)
widths = st.none() | st.integers(0, 120)


@given(lines, widths)
def test_it_fits_on_one_line(asked: dict[str, Any], width: int | None) -> None:
    shown = a_line(**asked, width=width)
    assert shown.isprintable()
    assert width is None or len(shown) <= width
    assert shown == shown.strip()
    if not asked["unicode"]:
        assert shown.isascii()


@given(lines, widths)
def test_colour_changes_nothing_else_and_ends(asked: dict[str, Any], width: int | None) -> None:
    shown = a_line(**asked, width=width, colour=True)
    assert SGR.sub("", shown) == a_line(**asked, width=width)
    codes = SGR.findall(shown)
    assert all(code != "0" for code in codes[::2])
    assert codes[1::2] == ["0"] * len(codes[::2])


@given(lines, st.integers(0, 120), st.integers(0, 120))
def test_what_fits_is_there_in_more_room(asked: dict[str, Any], one: int, another: int) -> None:
    """A narrower line leaves out whole parts of a wider one, or is the beginning of its last."""
    narrow, wide = sorted((one, another))
    less = a_line(**asked, width=narrow)
    rest = iter(a_line(**asked, width=wide))
    assert all(character in rest for character in less)


@given(lines)
def test_the_percentage_is_told_where_it_fits(asked: dict[str, Any]) -> None:
    tokens, spent = asked["tokens"], asked["spent"]
    share = short(spent) if tokens is None else f"{spent * 100 // tokens}%"
    assert share in a_line(**asked, width=len(share)).split()
    assert share in a_line(**asked).split()
