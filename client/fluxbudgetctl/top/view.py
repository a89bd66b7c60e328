"""The layout: a snapshot and the terminal's size in, lines out. No I/O, no clock.

The lines fill the terminal exactly, so nothing wraps or scrolls. Text from outside is escaped to one printable line
before it is measured, and is never read as markup.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from fluxbudgetctl.screens.output import COLOURS, bar
from fluxbudgetctl.top import formats
from fluxbudgetctl.top.feed import Snapshot
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.short import short
from fluxbudgetd.wire.text import one_line

NARROWEST, LOWEST = 40, 10
#: Rows for the header, the head of the table, the title of the selected run, the title of the events, and the keys.
_FRAME = 5
_SHORTEST_NAME = 8
_NARROWEST_BAR, _WIDEST_BAR = 6, 20
_SHORTEST_GOAL = 12
_FADED = "bright_black"
_TITLE = "bold"
_MARKS = {"completed": "✓", "skipped": "-", "current": "▶", "ahead": "·"}
_PLAIN_MARKS = {"completed": "+", "skipped": "-", "current": ">", "ahead": "."}
_EVENT_COLOURS = {
    "budget.warning": "yellow",
    "budget.exceeded": "red",
    "phase.blocked": "red",
    "run.loosened": "red",
    "launch.denied": "red",
    "turn.stopped": "red",
}
_KEYS = "q quit   up/down or j/k select   r refresh"


class Screen(NamedTuple):
    """The terminal's size, and which run is selected."""

    width: int
    height: int
    selected: int
    unicode: bool = True


class _Heights(NamedTuple):
    runs: int
    details: int
    events: int


class _Column(NamedTuple):
    head: str
    least: int
    most: int
    """The width that the longest cell needs."""
    cell: Callable[[messages.RunLine, int], Text]
    """Return the text for a run and the column's width."""
    right: bool = False


def lines(snapshot: Snapshot, screen: Screen, clock: str) -> list[Text]:
    """Return the terminal's lines."""
    if screen.width < NARROWEST or screen.height < LOWEST:
        small = [Text(f"too small: {NARROWEST}x{LOWEST} at least")]
        return _filled(small, screen, screen.height)
    heights = _heights(snapshot, screen)
    selected = snapshot.runs[screen.selected] if snapshot.runs else None
    detail = snapshot.detail if selected and snapshot.detail and snapshot.detail.run.id == selected.run.id else None
    texts = [
        _header(snapshot, screen, clock),
        *_filled(_table(snapshot, screen, heights.runs), screen, heights.runs + 1),
        _title(_run_title(selected), f"{screen.selected + 1}/{len(snapshot.runs)}" if selected else "", screen),
        *_filled(_details(detail, screen, heights.details), screen, heights.details),
        _title("events", "", screen),
        *_filled(_events(snapshot, screen, heights.events), screen, heights.events),
        Text(_KEYS, style="dim"),
    ]
    texts = _filled(texts, screen, screen.height)
    if snapshot.away:
        for line in texts[1:-1]:
            line.stylize(_FADED)
    return texts


def visible_runs(snapshot: Snapshot, screen: Screen) -> int:
    """Return how many runs are visible at once."""
    return max(_heights(snapshot, screen).runs, 1)


def _heights(snapshot: Snapshot, screen: Screen) -> _Heights:
    """Share out the rows: a quarter to the events, up to two fifths to the details, the rest to the runs.

    Rows that the runs do not need go to the details; rows that the details do not need go to the events.
    """
    rows = screen.height - _FRAME
    wanted = 0
    if snapshot.detail is not None:
        wanted = max(len(snapshot.detail.by_phase), len(snapshot.detail.by_agent)) + 1
    events = max(rows // 4, 1)
    runs = max(min(len(snapshot.runs), rows - events - max(min(wanted, rows * 2 // 5), 2)), 1)
    details = max(min(rows - events - runs, wanted), 2)
    return _Heights(runs, details, max(rows - runs - details, 1))


def _header(snapshot: Snapshot, screen: Screen, clock: str) -> Text:
    count = len(snapshot.runs)
    line = Text("fluxbudget", style=_TITLE)
    if snapshot.polled:
        line.append(f"  {count} active run{'' if count == 1 else 's'}", style="not bold")
    unread = [
        one_line(f"{source.name}: {source.state}")
        for source in snapshot.sources
        if source.state != "ok" and source.is_fault
    ]
    if snapshot.away:
        line.append(f"  {one_line(snapshot.away)}", style="red")
    elif any(run.spend.stale for run in snapshot.runs):
        line.append(f"  stale: {', '.join(unread) or 'last known numbers'}", style="magenta")
    return _both_ends(line, Text(clock, style="not bold"), screen)


def _table(snapshot: Snapshot, screen: Screen, rows: int) -> list[Text]:
    if not snapshot.runs:
        return [Text(), Text("no active runs" if snapshot.polled and not snapshot.away else "", style="dim")]
    first = max(min(screen.selected - rows // 2, len(snapshot.runs) - rows), 0)
    part = snapshot.runs[first : first + rows]
    columns = _columns(snapshot.runs, screen)
    head = Text("  ", style="dim")
    for number, (column, width) in enumerate(columns):
        head.append(" " * (number > 0)).append_text(_cell(Text(column.head), width, right=column.right))
    texts = [head]
    for number, run in enumerate(part, first):
        line = Text("> " if number == screen.selected else "  ")
        for position, (column, width) in enumerate(columns):
            line.append(" " * (position > 0)).append_text(_cell(column.cell(run, width), width, right=column.right))
        line.truncate(screen.width, pad=True)
        if number == screen.selected:
            line.stylize("reverse")
        texts.append(line)
    return texts


def _columns(runs: tuple[messages.RunLine, ...], screen: Screen) -> list[tuple[_Column, int]]:
    """Return the columns that fit, with their widths: numbers are never cut; names and the bar share what is left."""

    def longest(texts: Iterable[str]) -> int:
        return max(map(cell_len, texts), default=0)

    def coloured(text: str, run: messages.RunLine) -> Text:
        return Text(text, style=COLOURS[run.spend.state])

    def drawn(run: messages.RunLine, width: int) -> Text:
        return coloured(bar(run.spend.pct or 0.0, width, unicode=screen.unicode), run)

    def number(head: str, width: int, text: Callable[[messages.RunLine], str], *, colour: bool = False) -> _Column:
        return _Column(
            head, width, width, lambda run, _: coloured(text(run), run) if colour else Text(text(run)), right=True
        )

    run_id = _Column(
        "RUN",
        _SHORTEST_NAME,
        longest(one_line(run.run.id) for run in runs),
        lambda run, _: Text(one_line(run.run.id)),
    )
    phase = _Column(
        "PHASE",
        _SHORTEST_NAME,
        longest(one_line(run.run.phase) for run in runs),
        lambda run, _: Text(one_line(run.run.phase)),
    )
    drawing = _Column("", _NARROWEST_BAR, _WIDEST_BAR, drawn)
    spent = number("SPENT/OF", 11, _spent)
    pct = number("PCT", 6, lambda run: formats.percent(run.spend.pct), colour=True)
    burn = number("BURN", 9, lambda run: f"{short(run.burn)}/min" if run.burn else "-")
    left = number("LASTS", 6, lambda run: formats.duration(run.minutes_left))
    reserved = number("RESERVED", 8, lambda run: short(run.spend.reserved) if run.spend.reserved else "-")
    goal = _Column(
        "GOAL",
        _SHORTEST_GOAL,
        longest(one_line(run.run.goal) for run in runs),
        lambda run, _: Text(one_line(run.run.goal), style="dim"),
    )
    # When the terminal is too narrow, columns are left out from the end of this list.
    by_priority = [run_id, spent, pct, phase, burn, left, drawing, reserved, goal]
    by_position = [run_id, phase, drawing, spent, pct, burn, left, reserved, goal]
    widths: dict[int, int] = {}
    rest = screen.width - 2 + 1  # the mark takes 2; the last column has no gap after it
    for column in by_priority:
        if rest < column.least + 1:
            break
        widths[id(column)] = column.least
        rest -= column.least + 1
    for column in (run_id, phase, drawing, goal):
        if id(column) in widths:
            more = max(min(rest, column.most - column.least), 0)
            widths[id(column)] += more
            rest -= more
    return [(column, widths[id(column)]) for column in by_position if id(column) in widths]


def _spent(run: messages.RunLine) -> str:
    budget = run.spend.budget
    return f"{short(run.spend.spent)}/{'none' if budget is None else short(budget)}"


def _run_title(selected: messages.RunLine | None) -> str:
    if selected is None:
        return "run"
    goal = one_line(selected.run.goal)
    return f"{one_line(selected.run.id)}: {goal}" if goal else one_line(selected.run.id)


def _details(detail: messages.RunShowAnswer | None, screen: Screen, rows: int) -> list[Text]:
    """Return the phases and the agents, side by side."""
    if detail is None:
        return []
    half = (screen.width - 2) // 2
    left = [_named("PHASE", "SPENT/EST", half, "dim"), *_phases(detail.by_phase, half, rows - 1, screen)]
    basis = detail.run.cost_basis
    agents = sorted(detail.by_agent, key=lambda agent: (-getattr(agent, basis), agent.name))
    right_width = screen.width - 2 - half
    right = [_named("AGENT", basis.upper(), right_width, "dim")]
    for agent in agents[: rows - 1]:
        count = short(getattr(agent, basis)) + (f" +{agent.pending} pending" if agent.pending else "")
        right.append(_named(agent.name or "-", count, right_width))
    if len(agents) > rows - 1 and rows > 2:  # noqa: PLR2004  the head, and at least two agents
        right[-1] = Text(f"({len(agents) - rows + 2} more)", style="dim")
    texts = []
    for number in range(min(max(len(left), len(right)), rows)):
        line = left[number].copy() if number < len(left) else Text()
        line.truncate(half, pad=True)
        line.append("  ")
        if number < len(right):
            line.append_text(right[number])
        texts.append(line)
    return texts


def _phases(phases: tuple[messages.PhaseLine, ...], width: int, rows: int, screen: Screen) -> list[Text]:
    """Return the phases around the current one."""
    current = next((number for number, phase in enumerate(phases) if phase.state == "current"), len(phases) - 1)
    first = max(min(current - rows // 2, len(phases) - rows), 0)
    marks = _MARKS if screen.unicode else _PLAIN_MARKS
    styles = {"current": "bold", "ahead": "dim", "skipped": "dim"}
    texts = []
    for phase in phases[first : first + rows]:
        spent = f"{'~' if phase.provisional else ''}{short(phase.spent)}/{short(phase.estimate)}"
        texts.append(_named(f"{marks[phase.state]} {phase.name}", spent, width, styles.get(phase.state, "")))
    return texts


def _events(snapshot: Snapshot, screen: Screen, rows: int) -> list[Text]:
    texts = []
    shown = snapshot.events[-rows:]
    longest = max((cell_len(one_line(event.run or "-")) for event in shown), default=0)
    width = min(longest, screen.width // 4)
    for event in shown:
        line = Text(f"{formats.clock(event.at)} ", style="dim")
        line.append_text(_cell(Text(one_line(event.run or "-"), style="not dim"), width))
        line.append(f" {formats.event_line(event)}", style=f"not dim {_event_colour(event.kind)}")
        texts.append(line)
    return texts


def _event_colour(kind: str) -> str:
    return _EVENT_COLOURS.get(kind, "")


def _named(name: str, value: str, width: int, style: str = "") -> Text:
    """Return a name with its value at the right edge; the name is cut before the value."""
    right = Text(value)
    line = _cell(Text(one_line(name)), max(width - right.cell_len - 1, 1))
    line.append(" ").append_text(right)
    line.stylize(style)
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _title(text: str, right: str, screen: Screen) -> Text:
    dash = "─" if screen.unicode else "-"
    end = f" {right} {dash}" if right else ""
    line = Text(f"{dash} {text} ", style=_TITLE)
    line.truncate(screen.width - len(end) - 1, overflow="ellipsis")
    line.append(dash * (screen.width - line.cell_len - len(end)) + end)
    return line


def _both_ends(left: Text, right: Text, screen: Screen) -> Text:
    left.truncate(screen.width - right.cell_len - 1, overflow="ellipsis", pad=True)
    return left.append(" ").append_text(right)


def _cell(text: Text, width: int, *, right: bool = False) -> Text:
    """Return the text cut or padded to exactly `width` cells."""
    text.truncate(width, overflow="ellipsis")
    gap = width - text.cell_len
    if right:
        text.pad_left(gap)
    else:
        text.pad_right(gap)
    return text


def _filled(texts: list[Text], screen: Screen, rows: int) -> list[Text]:
    """Return exactly `rows` lines, each as wide as the terminal."""
    kept = [*texts[:rows], *(Text() for _ in range(rows - len(texts)))]
    for line in kept:
        line.truncate(screen.width, overflow="ellipsis", pad=True)
    return kept
