"""Shared by all parts of the benchmark: homes with a daemon, rows of the table, spreads."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from harness import daemon as harness  # noqa: E402

# Run the daemon as users do, without the detector of blocking calls that the tests use.
harness.DAEMON[:] = [sys.executable, "-m", "fluxbudgetd"]


class Bar(NamedTuple):
    """A row's bar in the picture: quartiles in seconds. `ours` is true for fluxbudget's own programs."""

    q1: float
    median: float
    q3: float
    ours: bool


class Row(NamedTuple):
    """One line of the table. `bar` is None if it is not in the picture."""

    what: str
    figure: str
    target: str
    met: bool | None
    bar: Bar | None = None


@contextmanager
def world(name: str, base: Path) -> Iterator[harness.Home]:
    """Make a home, and stop its daemons at the end."""
    home = harness.Home(base / name)
    try:
        yield home
    finally:
        home.stop_all()


def timed(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def spread(seconds: Sequence[float]) -> str:
    """Return median, quartiles and p99, in microseconds, or in milliseconds if the median is 10 ms or more."""
    quartiles = statistics.quantiles(seconds, n=4)
    unit, factor, digits = ("µs", 1e6, 0) if quartiles[1] < 0.01 else ("ms", 1e3, 1)
    q1, q2, q3, last = (f"{time * factor:.{digits}f}" for time in (*quartiles, p99(seconds)))
    return f"{q2} {unit} (quartiles {q1}–{q3}, p99 {last})"


def grouped(number: int) -> str:
    """Return a number with its digits in groups of three."""
    return f"{number:,}".replace(",", " ")


def p99(seconds: Sequence[float]) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float], most: float | None = None) -> Row:
    """Return a row with the ratio of two medians. `most` is its target, if it has one."""
    found = statistics.median(ours) / statistics.median(theirs)
    return Row(what, f"{found:.2f}", "" if most is None else f"≤ {most:g}", None if most is None else found <= most)
