"""The active runs: a table with bars and colours on a terminal, plain columns in a pipe."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from fluxbudgetctl.screens.databases import database_line
from fluxbudgetctl.screens.output import COLOURS, bar, is_on_terminal, print_columns, tokens
from fluxbudgetd.wire import messages, ties
from fluxbudgetd.wire.text import one_line

if TYPE_CHECKING:
    from rich.text import Text

_GAP = 2
_SHORTEST_NAME = 8
_NARROWEST_BAR, _WIDEST_BAR = 8, 20


def print_status(answer: messages.StatusAnswer) -> None:
    """Print the runs, the sources that cannot be read, and the usage that belongs to no run."""
    if not answer.runs:
        print("no active runs")
    elif is_on_terminal():
        _print_table(answer.runs)
    else:
        print_columns(
            ("RUN", "PHASE", "SPENT", "BUDGET", "PCT", "REMAINING", "RESERVED", "STATE", "GOAL"),
            [_plain_row(line) for line in answer.runs],
        )
    for directory, runs in _shared_directories(answer.runs):
        print(f"ambiguous: {one_line(directory)} is the project of {len(runs)} runs: {one_line(ties.listed(runs))}")
    for line in answer.runs:
        for reason in line.lower_bound_why:
            print(f"lower bound: {line.run.id}: {one_line(reason)}")
    for source in answer.sources:
        if source.state != "ok" and source.is_fault:
            print(f"stale: {source.name}: {source.state}: {one_line(source.detail)} ({one_line(source.path)})")
    for database in answer.databases:
        print(database_line(database))
    loose = answer.unattributed
    if loose.sessions:
        print(
            f"unattributed: {tokens(loose.billing)} billing tokens in {loose.sessions} sessions that belong to no run"
            " (among interstat's newest 10 000 rows)"
        )


def _shared_directories(lines: Sequence[messages.RunLine]) -> list[tuple[str, list[str]]]:
    """Return the directories that are the project of several of these active runs, each with the runs' ids."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if line.run.status == "active":
            found.setdefault(line.run.project_dir, []).append(line.run.id)
    return [(directory, runs) for directory, runs in found.items() if len(runs) > 1]


def _plain_row(line: messages.RunLine) -> tuple[str, ...]:
    spend = line.spend
    return (
        line.run.id,
        line.run.phase,
        str(spend.spent),
        "none" if spend.budget is None else str(spend.budget),
        "-" if spend.pct is None else f"{spend.pct}%",
        "-" if spend.remaining is None else str(spend.remaining),
        str(spend.reserved),
        f"{spend.state}{',stale' if spend.stale else ''}{',lower_bound' if line.lower_bound else ''}",
        one_line(line.run.goal),
    )


class _Widths(NamedTuple):
    """The widths of a table's columns; what is narrower than its minimum is left out."""

    run: int
    phase: int
    bar: int
    goal: int

    @property
    def has_phase(self) -> bool:
        return self.phase >= _SHORTEST_NAME

    @property
    def has_bar(self) -> bool:
        return self.bar >= _NARROWEST_BAR

    @property
    def has_goal(self) -> bool:
        return self.goal >= _SHORTEST_NAME


def _widths(lines: Sequence[messages.RunLine], left: int) -> _Widths:
    """Share out the cells that numbers and states leave: names come first, then the bar, then the goal."""
    left = max(left, _SHORTEST_NAME)
    run = min(max(len(line.run.id) for line in lines), max(left // 2, _SHORTEST_NAME))
    left -= run + _GAP
    phase = min(max(len(line.run.phase) for line in lines), max(left, 0))
    left -= phase + _GAP
    bar_width = min(max(left, 0), _WIDEST_BAR)
    return _Widths(run, phase, bar_width, left - bar_width - 2 * _GAP)


def _print_table(lines: Sequence[messages.RunLine]) -> None:
    from rich.console import Console  # noqa: PLC0415  30 ms that only a person at a terminal pays
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    mark = "≥" if unicode else ">="
    spent = [
        f"{mark if line.lower_bound else ''}{tokens(line.spend.spent)} / {tokens(line.spend.budget)}" for line in lines
    ]
    pct = ["-" if line.spend.pct is None else f"{line.spend.pct:.1f}" for line in lines]
    # Numbers and states are never cut.
    fixed = max(map(len, pct)) + max(map(len, spent)) + max(len(line.spend.state) for line in lines) + 4 * _GAP
    widths = _widths(lines, console.width - fixed)
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("RUN", no_wrap=True, overflow="ellipsis", max_width=widths.run, min_width=widths.run)
    if widths.has_phase:
        table.add_column("PHASE", no_wrap=True, overflow="ellipsis", max_width=widths.phase, min_width=widths.phase)
    if widths.has_bar:
        table.add_column("", no_wrap=True)
    table.add_column("%", justify="right", no_wrap=True, min_width=max(map(len, pct)))
    table.add_column("SPENT / BUDGET", justify="right", no_wrap=True, min_width=max(map(len, spent)))
    table.add_column("STATE", no_wrap=True, overflow="ellipsis")
    if widths.has_goal:
        table.add_column("GOAL", no_wrap=True, overflow="ellipsis", max_width=widths.goal)
    for line, line_pct, line_spent in zip(lines, pct, spent, strict=True):
        colour = COLOURS[line.spend.state]
        cells = [Text(line.run.id)]
        if widths.has_phase:
            cells.append(Text(line.run.phase))
        if widths.has_bar:
            cells.append(Text(bar(line.spend.pct or 0.0, widths.bar, unicode=unicode), style=colour))
        cells += [Text(line_pct, style=colour), Text(line_spent), _state(line)]
        if widths.has_goal:
            cells.append(Text(one_line(line.run.goal)))
        table.add_row(*cells)
    console.print(table)


def _state(line: messages.RunLine) -> "Text":
    from rich.text import Text  # noqa: PLC0415  imported already

    spend = line.spend
    text = Text(spend.state, style=COLOURS[spend.state])
    if spend.reserved:
        text.append(f" +{tokens(spend.reserved)} reserved", style="dim")
    if line.pending:
        text.append(f" {line.pending} pending", style="dim")
    if spend.stale:
        text.append(" stale", style="magenta")
    return text
