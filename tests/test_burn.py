"""The burn rate of the last ten minutes, and when the budget would be spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.policy.burn import LONGEST, WINDOW, forecast, minutes_left, rate
from fluxbudgetd.wire import messages
from harness.daemon import Home, started
from harness.interstat import Interstat
from harness.transcripts import Transcript

MINUTE = 60 * 1_000_000
#: The number of a minute, and its start.
CURRENT = 29_526_766
START = CURRENT * MINUTE


def test_rate_without_usage_is_0() -> None:
    assert rate({}, START) == 0
    assert rate({CURRENT: 0, CURRENT - 1: 0}, START) == 0


def test_rate_is_over_at_least_a_minute() -> None:
    """The first seconds of work are not extrapolated."""
    assert [rate({CURRENT: 900}, START + second * 1_000_000) for second in (0, 1, 59)] == [900] * 3


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(60, 900), (90, 600), (120, 450), (540, 100), (599, 90), (600, 0)],
)
def test_rate_is_since_the_first_usage_in_the_window(seconds: int, expected: int) -> None:
    assert rate({CURRENT: 900}, START + seconds * 1_000_000) == expected


def test_usage_older_than_ten_minutes_does_not_count() -> None:
    """Neither its tokens nor its time is part of the rate."""
    assert rate({CURRENT - 10: 10**9, CURRENT - 4: 500, CURRENT: 500}, START + MINUTE) == 200
    assert rate({CURRENT - 9: 10_000, CURRENT - 10: 10**9}, START + MINUTE - 1) == 1000
    assert WINDOW == 10


def test_minutes_without_usage_do_not_begin_the_window() -> None:
    assert rate({CURRENT - 8: 0, CURRENT - 1: 600}, START + MINUTE) == 300


def test_rate_is_rounded_down() -> None:
    assert rate({CURRENT - 2: 5}, START + MINUTE) == 1
    assert rate({CURRENT - 2: 2}, START + MINUTE) == 0


def test_usage_in_the_future_counts_as_now() -> None:
    """A source's clock that is ahead neither hides usage nor gives a negative time."""
    assert rate({CURRENT + 3: 400, CURRENT + 99_999: 300, CURRENT: 200}, START) == 900
    assert rate({CURRENT - 3: 400, CURRENT + 3: 400}, START + MINUTE) == 200


@given(st.integers(0, 10**9), st.integers(0, MINUTE - 1), st.integers(0, 30))
def test_steady_usage_gives_its_rate(tokens: int, into: int, before: int) -> None:
    """The usage is the same in each full minute, and in proportion in the current one."""
    steady = {CURRENT - back: tokens for back in range(1, before + 1)}
    found = rate({**steady, CURRENT: tokens * into // MINUTE}, START + into)
    if before == 0:
        assert found == tokens * into // MINUTE
    else:
        assert tokens - 1 <= found <= tokens


@given(st.dictionaries(st.integers(CURRENT - 20, CURRENT + 20), st.integers(0, 2**63)), st.integers(0, MINUTE))
def test_rate_is_at_most_all_tokens_and_at_least_their_mean_over_the_window(minutes: dict[int, int], into: int) -> None:
    found = rate(minutes, START + into)
    recent = sum(tokens for minute, tokens in minutes.items() if minute > (START + into) // MINUTE - WINDOW)
    assert recent // WINDOW <= found <= recent


def test_minutes_until_the_budget_is_spent() -> None:
    assert minutes_left(42_000, 1800) == 23
    assert minutes_left(1799, 1800) == 0
    assert minutes_left(0, 1800) == 0
    assert minutes_left(None, 1800) is None
    assert minutes_left(42_000, 0) is None
    assert minutes_left(0, 0) is None


def test_more_than_a_week_is_not_predicted() -> None:
    assert LONGEST == 7 * 24 * 60
    assert minutes_left(LONGEST * 7, 7) == LONGEST
    assert minutes_left(LONGEST * 7 + 1, 7) is None


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (None, ""),
        (0, "less than a minute at this rate"),
        (1, "about 1 min at this rate"),
        (12, "about 12 min at this rate"),
        (119, "about 119 min at this rate"),
        (120, "about 2 h at this rate"),
        (239, "about 3 h at this rate"),
        (LONGEST, "about 168 h at this rate"),
    ],
)
def test_forecast_in_words(minutes: int | None, words: str) -> None:
    assert forecast(minutes) == words


# --- with a real daemon


def uses(home: Home, tokens: int) -> None:
    """Write a response with the current time."""
    Transcript(home.root / "claude", "s1").response(f"m{tokens}", tokens=(tokens, 0, 0, 0))


def burns(home: Home) -> dict[str, int]:
    """Return the burn rate of each active run."""
    return {found["run"]["id"]: found["burn"] for found in home.json("status")["runs"]}


def statusline(home: Home, run: str) -> str:
    answer = home.ask(messages.StatusLine(run=run, width=200, wait_ms=30_000))
    assert isinstance(answer, messages.StatusLineAnswer), answer
    return answer.line


def test_only_usage_of_the_sessions_current_run_counts(home: Home, interstat: Interstat) -> None:
    """The first attachment includes earlier usage; a later one does not. The same holds after a restart."""
    daemon = home.start()
    started(home, id="a", token_budget=1_000_000)
    uses(home, 300_000)
    home.ok("run", "attach", "--session", "s1", "--run", "a")
    assert burns(home)["a"] >= 30_000

    def over_a_restart() -> dict[str, int]:
        nonlocal daemon
        before = burns(home)
        daemon.kill()
        daemon = home.start()
        assert burns(home) == before
        return before

    home.ok("run", "detach", "--session", "s1")
    assert over_a_restart() == {"a": 0}
    uses(home, 5_000)
    home.ok("run", "attach", "--session", "s1", "--run", "a")
    assert over_a_restart() == {"a": 0}
    started(home, id="b", token_budget=1_000_000)
    home.ok("run", "attach", "--session", "s1", "--run", "b")
    assert over_a_restart() == {"a": 0, "b": 0}


def test_ended_run_has_no_rate(home: Home, interstat: Interstat) -> None:
    """Its session is now in another run, which has used nothing."""
    home.start()
    started(home, id="a", session="s1", token_budget=1_000_000)
    uses(home, 300_000)
    assert "k/min" in statusline(home, "a")
    home.ok("run", "finish", "--run", "a")
    assert "300k/1M" in statusline(home, "a")
    assert "/min" not in statusline(home, "a")
    started(home, id="b", token_budget=100_000)
    home.ok("run", "attach", "--session", "s1", "--run", "b")
    assert burns(home) == {"b": 0}
    assert "/min" not in statusline(home, "b")
