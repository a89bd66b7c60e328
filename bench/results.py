"""Write the figures: bench/RESULTS.md, the table in docs/performance.md, and the picture."""

import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import Row
from picture import picture

_BEGIN, _END = "<!-- figures -->\n", "<!-- /figures -->"


def table(rows: Iterable[Row]) -> str:
    lines = ["| what | figure | target | |", "|---|---|---|---|"]
    marks = {True: "met", False: "**missed**", None: ""}
    lines += [f"| {row.what} | {row.figure} | {row.target} | {marks[row.met]} |" for row in rows]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], root: Path) -> None:
    """Write the figures into the source tree. docs/performance.md has those with a target."""
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    (root / "bench" / "RESULTS.md").write_text(
        f"# Figures\n\nWritten by `make bench` ({versions}, {os.cpu_count()} cores, {platform.machine()}).\n"
        f"Ratios are of interleaved runs; absolute times are for context.\n\n{table(rows)}"
    )
    page = root / "docs" / "performance.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert end, f"{page} has no place for the figures"
    page.write_text(before + _BEGIN + table(row for row in rows if row.target) + _END + after)
    (root / "docs" / "latency.svg").write_text(picture(rows))
