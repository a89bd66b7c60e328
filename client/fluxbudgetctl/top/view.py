"""The layout: what is known and the terminal's size in, lines out. No I/O, no clock.

Every line is exactly as wide as the terminal, and there are exactly as many as it has rows: nothing wraps or scrolls.
Other people's text is made one printable line before it is measured, and is never read as markup.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from rich.cells import cell_len
from rich.text import Text

from fluxbudgetctl.failure import one_line
from fluxbudgetctl.rendering import COLOURS, bar
from fluxbudgetctl.top import words
from fluxbudgetctl.top.data import Shown
from fluxbudgetd.wire import messages
from fluxbudgetd.wire.short import short

NARROWEST, LOWEST = 40, 10
#: Header, head of the table, title of the chosen run, title of the events, keys.
_FRAME = 5
_SHORTEST_NAME = 8
_NARROWEST_BAR, _WIDEST_BAR = 6, 20
_SHORTEST_GOAL = 12
_FADED = "bright_black"
_TITLE = "bold"
_MARKS = {"completed": "✓", "skipped": "-", "current": "▶", "ahead": "·"}
_PLAIN_MARKS = {"completed": "+", "skipped": "-", "current": ">", "ahead": "."}
_KEYS = "q quit   up/down or j/k select   r refresh"


class Place(NamedTuple):
    """What there is to draw on, and which run is chosen."""

    width: int
    height: int
    chosen: int
    unicode: bool = True


class _Heights(NamedTuple):
    runs: int
    details: int
    events: int


class _Column(NamedTuple):
    head: str
    least: int
    most: int
    """What its texts need."""
    cell: Callable[[messages.RunLine, int], Text]
    """Given the run and the column's width."""
    right: bool = False


def lines(shown: Shown, place: Place, clock: str) -> list[Text]:
    """Return the terminal's lines."""
    if place.width < NARROWEST or place.height < LOWEST:
        small = [Text(f"too small: {NARROWEST}x{LOWEST} at least")]
        return _filled(small, place, place.height)
    heights = _heights(shown, place)
    chosen = shown.runs[place.chosen] if shown.runs else None
    detail = shown.detail if chosen and shown.detail and shown.detail.run.id == chosen.run.id else None
    made = [
        _header(shown, place, clock),
        *_filled(_table(shown, place, heights.runs), place, heights.runs + 1),
        _title(_chosen_title(chosen), f"{place.chosen + 1}/{len(shown.runs)}" if chosen else "", place),
        *_filled(_details(detail, place, heights.details), place, heights.details),
        _title("events", "", place),
        *_filled(_events(shown, place, heights.events), place, heights.events),
        Text(_KEYS, style="dim"),
    ]
    made = _filled(made, place, place.height)
    if shown.away:
        for line in made[1:-1]:
            line.stylize(_FADED)
    return made


def visible_runs(shown: Shown, place: Place) -> int:
    """Return how many runs are seen at once."""
    return max(_heights(shown, place).runs, 1)


def _heights(shown: Shown, place: Place) -> _Heights:
    """Share out the rows: a fourth for events, up to two fifths for details, the rest for runs.

    What the runs do not need goes to the details, what those do not need to the events.
    """
    rows = place.height - _FRAME
    wanted = 0
    if shown.detail is not None:
        wanted = max(len(shown.detail.by_phase), len(shown.detail.by_agent)) + 1
    events = max(rows // 4, 1)
    runs = max(min(len(shown.runs), rows - events - max(min(wanted, rows * 2 // 5), 2)), 1)
    details = max(min(rows - events - runs, wanted), 2)
    return _Heights(runs, details, max(rows - runs - details, 1))


def _header(shown: Shown, place: Place, clock: str) -> Text:
    count = len(shown.runs)
    line = Text("fluxbudget", style=_TITLE)
    if shown.asked:
        line.append(f"  {count} active run{'' if count == 1 else 's'}", style="not bold")
    unread = [one_line(f"{source.name}: {source.state}") for source in shown.sources if source.state != "ok"]
    if shown.away:
        line.append(f"  {one_line(shown.away)}", style="red")
    elif any(run.spend.stale for run in shown.runs):
        line.append(f"  stale: {', '.join(unread) or 'last known numbers'}", style="magenta")
    return _both_ends(line, Text(clock, style="not bold"), place)


def _table(shown: Shown, place: Place, rows: int) -> list[Text]:
    if not shown.runs:
        return [Text(), Text("no active runs" if shown.asked and not shown.away else "", style="dim")]
    first = max(min(place.chosen - rows // 2, len(shown.runs) - rows), 0)
    part = shown.runs[first : first + rows]
    columns = _columns(shown.runs, place)
    head = Text("  ", style="dim")
    for number, (column, width) in enumerate(columns):
        head.append(" " * (number > 0)).append_text(_cell(Text(column.head), width, right=column.right))
    made = [head]
    for number, run in enumerate(part, first):
        line = Text("> " if number == place.chosen else "  ")
        for position, (column, width) in enumerate(columns):
            line.append(" " * (position > 0)).append_text(_cell(column.cell(run, width), width, right=column.right))
        line.truncate(place.width, pad=True)
        if number == place.chosen:
            line.stylize("reverse")
        made.append(line)
    return made


def _columns(runs: tuple[messages.RunLine, ...], place: Place) -> list[tuple[_Column, int]]:
    """Return the columns that fit, with their widths: numbers are never cut, names and the bar take what is left."""

    def longest(texts: Iterable[str]) -> int:
        return max(map(cell_len, texts), default=0)

    def coloured(text: str, run: messages.RunLine) -> Text:
        return Text(text, style=COLOURS[run.spend.state])

    def drawn(run: messages.RunLine, width: int) -> Text:
        return coloured(bar(run.spend.pct or 0.0, width, unicode=place.unicode), run)

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
    pct = number("PCT", 6, lambda run: words.percent(run.spend.pct), colour=True)
    burn = number("BURN", 9, lambda run: f"{short(run.burn)}/min" if run.burn else "-")
    left = number("LASTS", 6, lambda run: words.lasting(run.minutes_left))
    reserved = number("RESERVED", 8, lambda run: short(run.spend.reserved) if run.spend.reserved else "-")
    goal = _Column(
        "GOAL",
        _SHORTEST_GOAL,
        longest(one_line(run.run.goal) for run in runs),
        lambda run, _: Text(one_line(run.run.goal), style="dim"),
    )
    # In the order in which they are given up when the terminal is narrow, the last one first.
    by_worth = [run_id, spent, pct, phase, burn, left, drawing, reserved, goal]
    in_order = [run_id, phase, drawing, spent, pct, burn, left, reserved, goal]
    widths: dict[int, int] = {}
    rest = place.width - 2 + 1  # the mark; the last column has no gap behind it
    for column in by_worth:
        if rest < column.least + 1:
            break
        widths[id(column)] = column.least
        rest -= column.least + 1
    for column in (run_id, phase, drawing, goal):
        if id(column) in widths:
            more = max(min(rest, column.most - column.least), 0)
            widths[id(column)] += more
            rest -= more
    return [(column, widths[id(column)]) for column in in_order if id(column) in widths]


def _spent(run: messages.RunLine) -> str:
    budget = run.spend.budget
    return f"{short(run.spend.spent)}/{'none' if budget is None else short(budget)}"


def _chosen_title(chosen: messages.RunLine | None) -> str:
    if chosen is None:
        return "run"
    goal = one_line(chosen.run.goal)
    return f"{one_line(chosen.run.id)}: {goal}" if goal else one_line(chosen.run.id)


def _details(detail: messages.RunShowAnswer | None, place: Place, rows: int) -> list[Text]:
    """Return phases and agents, side by side."""
    if detail is None:
        return []
    half = (place.width - 2) // 2
    left = [_named("PHASE", "SPENT/EST", half, "dim"), *_phases(detail.by_phase, half, rows - 1, place)]
    basis = detail.run.cost_basis
    agents = sorted(detail.by_agent, key=lambda one: (-getattr(one, basis), one.name))
    right_width = place.width - 2 - half
    right = [_named("AGENT", basis.upper(), right_width, "dim")]
    for one in agents[: rows - 1]:
        count = short(getattr(one, basis)) + (f" +{one.pending} pending" if one.pending else "")
        right.append(_named(one.name or "-", count, right_width))
    if len(agents) > rows - 1 and rows > 2:  # noqa: PLR2004  a head, and a line to give up
        right[-1] = Text(f"({len(agents) - rows + 2} more)", style="dim")
    made = []
    for number in range(min(max(len(left), len(right)), rows)):
        line = left[number].copy() if number < len(left) else Text()
        line.truncate(half, pad=True)
        line.append("  ")
        if number < len(right):
            line.append_text(right[number])
        made.append(line)
    return made


def _phases(phases: tuple[messages.PhaseLine, ...], width: int, rows: int, place: Place) -> list[Text]:
    """Return the phases around the present one."""
    current = next((number for number, one in enumerate(phases) if one.state == "current"), len(phases) - 1)
    first = max(min(current - rows // 2, len(phases) - rows), 0)
    marks = _MARKS if place.unicode else _PLAIN_MARKS
    styles = {"current": "bold", "ahead": "dim", "skipped": "dim"}
    made = []
    for one in phases[first : first + rows]:
        spent = f"{'~' if one.provisional else ''}{short(one.spent)}/{short(one.estimate)}"
        made.append(_named(f"{marks[one.state]} {one.name}", spent, width, styles.get(one.state, "")))
    return made


def _events(shown: Shown, place: Place, rows: int) -> list[Text]:
    made = []
    width = min(max((cell_len(one_line(one.run or "-")) for one in shown.events[-rows:]), default=0), place.width // 4)
    for one in shown.events[-rows:]:
        line = Text(f"{words.clock(one.at)} ", style="dim")
        line.append_text(_cell(Text(one_line(one.run or "-"), style="not dim"), width))
        line.append(f" {words.event(one)}", style=f"not dim {_event_colour(one.kind)}")
        made.append(line)
    return made


def _event_colour(kind: str) -> str:
    return {"budget.warning": "yellow", "budget.exceeded": "red", "phase.blocked": "red"}.get(kind, "")


def _named(name: str, value: str, width: int, style: str = "") -> Text:
    """Return a name and, at the right, its value, which is not cut as long as any of the name is seen."""
    right = Text(value)
    line = _cell(Text(one_line(name)), max(width - right.cell_len - 1, 1))
    line.append(" ").append_text(right)
    line.stylize(style)
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def _title(text: str, right: str, place: Place) -> Text:
    dash = "─" if place.unicode else "-"
    end = f" {right} {dash}" if right else ""
    line = Text(f"{dash} {text} ", style=_TITLE)
    line.truncate(place.width - len(end) - 1, overflow="ellipsis")
    line.append(dash * (place.width - line.cell_len - len(end)) + end)
    return line


def _both_ends(left: Text, right: Text, place: Place) -> Text:
    left.truncate(place.width - right.cell_len - 1, overflow="ellipsis", pad=True)
    return left.append(" ").append_text(right)


def _cell(text: Text, width: int, *, right: bool = False) -> Text:
    """Return the text in exactly so many cells."""
    text.truncate(width, overflow="ellipsis")
    gap = width - text.cell_len
    if right:
        text.pad_left(gap)
    else:
        text.pad_right(gap)
    return text


def _filled(made: list[Text], place: Place, rows: int) -> list[Text]:
    """Return exactly so many lines, each as wide as the terminal."""
    kept = [*made[:rows], *(Text() for _ in range(rows - len(made)))]
    for line in kept:
        line.truncate(place.width, overflow="ellipsis", pad=True)
    return kept
