"""What the parts of the benchmark share: homes with a daemon as users run it, rows of the table, spreads."""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from harness import daemon as harness  # noqa: E402

# The daemon as users run it, without the tests' detector.
harness.DAEMON[:] = [sys.executable, "-m", "fluxbudgetd"]


class Row(NamedTuple):
    """One line of the table."""

    what: str
    figure: str
    target: str
    met: bool | None


@contextmanager
def world(name: str, base: Path) -> Iterator[harness.Home]:
    """Make a home whose daemons are ended."""
    home = harness.Home(base / name)
    try:
        yield home
    finally:
        home.stop_all()


def timed(action: Callable[[], object]) -> float:
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def spread(seconds: list[float]) -> str:
    """Return median, quartiles and p99 in microseconds."""
    ordered = sorted(seconds)
    q1, q2, q3 = statistics.quantiles(ordered, n=4)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return f"{q2 * 1e6:.0f} µs (quartiles {q1 * 1e6:.0f}–{q3 * 1e6:.0f}, p99 {p99 * 1e6:.0f})"
