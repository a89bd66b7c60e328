"""The status line's text: one line that fits, with the most important parts first."""

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


def text_of(
    spent: int = 208_000,
    tokens: int | None = 250_000,
    *,
    reserved: int = 0,
    rate: int = 1800,
    phase: str = "executing",
    allowed_to: int | None = None,
    **fields: Any,
) -> str:
    run = a_run(token_budget=tokens, phase=phase, allowed_to=allowed_to)
    asked = {"stale": False, "width": None, "colour": False, **fields}
    return line(run=run, balance=budget.balance(run, spent, 0, reserved), rate=rate, **asked)


def test_active_run() -> None:
    assert text_of() == "executing ██████▋░ 208k/250k 83% · 1.8k/min · about 23 min at this rate"
    assert text_of(reserved=40_000, stale=True) == FULL


@pytest.mark.parametrize("status", ["done", "cancelled"])
def test_ended_run_shows_its_end(status: str) -> None:
    run = a_run(token_budget=250_000, phase="executing", status=status)
    balance = budget.balance(run, 208_000)
    shown = line(run=run, balance=balance, rate=0, stale=False, width=None, colour=False)
    assert shown == f"{status} ██████▋░ 208k/250k 83%"


def test_in_ascii() -> None:
    assert text_of(unicode=False) == "executing ######.. 208k/250k 83% | 1.8k/min | about 23 min at this rate"
    assert text_of(unicode=False, phase="x" * 30).split()[0] == "x" * 17 + "..."


def test_rate_of_0_is_not_shown() -> None:
    assert text_of(rate=0) == "executing ██████▋░ 208k/250k 83%"


def test_reserved_tokens_do_not_remain() -> None:
    assert text_of(reserved=42_000).endswith("83% (+42k reserved) · 1.8k/min · less than a minute at this rate")


def test_exceeded() -> None:
    assert text_of(260_000) == "executing ████████ 260k/250k 104% · 1.8k/min · over by 10k"
    assert text_of(260_000, rate=0) == "executing ████████ 260k/250k 104% · over by 10k"
    assert text_of(250_000, rate=0) == "executing ████████ 250k/250k 100% · budget exceeded"


def test_exceeded_with_an_allowance() -> None:
    assert text_of(260_000, rate=0, allowed_to=275_000) == "executing ████████ 260k/250k 104% · 15k more allowed"
    assert text_of(275_000, rate=0, allowed_to=275_000) == "executing ████████ 275k/250k 110% · over by 25k"


def test_without_a_budget() -> None:
    assert text_of(tokens=None) == "executing 208k · 1.8k/min"
    assert text_of(tokens=None, reserved=40_000, rate=0, stale=True) == "executing 208k (+40k reserved) (stale)"


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
def test_bar_is_never_fuller_than_the_spend(spent: int, bar: str, ascii_bar: str) -> None:
    assert text_of(spent, 1000).split()[1] == bar
    assert text_of(spent, 1000, unicode=False).split()[1] == ascii_bar


def test_percentages_are_rounded_down() -> None:
    assert text_of(999, 1000, rate=0).split()[-1] == "99%"


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
def test_less_important_parts_are_left_out_first(text: str) -> None:
    """Each of these texts is what fits its own width."""
    assert text_of(reserved=40_000, stale=True, width=len(text)) == text


def test_without_a_budget_the_spend_is_kept_longest() -> None:
    wide = "executing 208k (+40k reserved) · 1.8k/min"
    texts = [wide, "executing 208k · 1.8k/min", "executing 208k", "208k", "20", ""]
    assert [text_of(tokens=None, reserved=40_000, width=len(text)) for text in texts] == texts
    assert text_of(width=-1) == ""
    assert text_of(width=0, colour=True) == ""


def test_long_phase_is_cut() -> None:
    assert text_of(phase="x" * 20).startswith("x" * 20 + " ")
    assert text_of(phase="x" * 21).startswith("x" * 19 + "… ")
    assert text_of(phase="").startswith("██████▋░ 208k")


@pytest.mark.parametrize(
    ("spent", "tokens", "sgr"),
    [(0, 1000, "32"), (799, 1000, "32"), (800, 1000, "33"), (999, 1000, "33"), (1000, 1000, "1;31")],
)
def test_bar_and_percentage_have_the_colour_of_the_state(spent: int, tokens: int, sgr: str) -> None:
    shown = text_of(spent, tokens, colour=True)
    coloured = re.findall(rf"\x1b\[{sgr}m([^\x1b]*)\x1b\[0m", shown)
    assert coloured == [text_of(spent, tokens).split()[1], f"{spent * 100 // tokens}%"]
    assert SGR.sub("", shown) == text_of(spent, tokens)


def test_without_a_budget_the_spend_is_coloured() -> None:
    assert text_of(tokens=None, colour=True, rate=0) == "executing \x1b[36m208k\x1b[0m"


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
def test_text_fits_on_one_line(asked: dict[str, Any], width: int | None) -> None:
    shown = text_of(**asked, width=width)
    assert shown.isprintable()
    assert width is None or len(shown) <= width
    assert shown == shown.strip()
    if not asked["unicode"]:
        assert shown.isascii()


@given(lines, widths)
def test_colour_changes_nothing_else_and_is_reset(asked: dict[str, Any], width: int | None) -> None:
    shown = text_of(**asked, width=width, colour=True)
    assert SGR.sub("", shown) == text_of(**asked, width=width)
    codes = SGR.findall(shown)
    assert all(code != "0" for code in codes[::2])
    assert codes[1::2] == ["0"] * len(codes[::2])


@given(lines, st.integers(0, 120), st.integers(0, 120))
def test_wider_line_has_every_part_of_a_narrower_one(asked: dict[str, Any], one: int, another: int) -> None:
    """A narrower line leaves out whole parts, or is the beginning of its last one."""
    narrow, wide = sorted((one, another))
    less = text_of(**asked, width=narrow)
    rest = iter(text_of(**asked, width=wide))
    assert all(character in rest for character in less)


@given(lines)
def test_percentage_is_shown_where_it_fits(asked: dict[str, Any]) -> None:
    tokens, spent = asked["tokens"], asked["spent"]
    share = short(spent) if tokens is None else f"{spent * 100 // tokens}%"
    assert share in text_of(**asked, width=len(share)).split()
    assert share in text_of(**asked).split()
