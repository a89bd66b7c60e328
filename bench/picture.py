"""The picture in docs/performance.md: medians of whole processes as bars with whiskers, on a logarithmic axis."""

import math
from collections.abc import Iterable, Iterator
from html import escape

from common import Bar, Row

# These colours have about the same contrast on white and on black; the page provides the background.
_TEXT, _OURS, _OTHER = "#768390", "#2f81f7", "#8b949e"
_WIDTH, _LABELS, _FIGURES, _ROW, _TOP = 900, 440, 80, 24, 30
_FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\" font-size=\"13\""


class _Axis:
    """The axis, from milliseconds to x. Its steps of 1, 2, 5, 10, … enclose everything that is shown."""

    def __init__(self, bars: Iterable[Bar]) -> None:
        steps = [factor * 10.0**power for power in range(-2, 5) for factor in (1, 2, 5)]
        ends = [end * 1e3 for bar in bars for end in (bar.q1, bar.q3)]
        low = max(step for step in steps if step < min(ends))
        high = min(step for step in steps if step >= max(ends))
        self.marks = [step for step in steps if low <= step <= high]

    def x(self, milliseconds: float) -> float:
        first, last = math.log(self.marks[0]), math.log(self.marks[-1])
        share = (math.log(milliseconds) - first) / (last - first)
        return _LABELS + share * (_WIDTH - _LABELS - _FIGURES)


def picture(rows: Iterable[Row]) -> str:
    """Return an SVG with the rows that have a bar."""
    shown = [(row, row.bar) for row in rows if row.bar is not None]
    axis = _Axis(bar for _, bar in shown)
    bottom = _TOP + _ROW * len(shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom + 40}" {_FONT} fill="{_TEXT}">',
        "<title>Whole processes: median time from start to end, with quartiles</title>",
        f'<text x="{_LABELS}" y="16" font-weight="bold">Whole process, start to end: median, quartiles</text>',
    ]
    for mark in axis.marks:
        x = f"{axis.x(mark):.1f}"
        parts.append(f'<line x1="{x}" y1="{_TOP - 4}" x2="{x}" y2="{bottom}" stroke="{_TEXT}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{_LABELS}" y="{bottom + 34}">milliseconds (logarithmic)</text>')
    for number, (row, bar) in enumerate(shown):
        parts += _bar(row, bar, axis, _TOP + _ROW * number)
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Row, bar: Bar, axis: _Axis, top: int) -> Iterator[str]:
    middle, base = top + _ROW / 2, top + _ROW / 2 + 4.5
    q1, median, q3 = (axis.x(seconds * 1e3) for seconds in (bar.q1, bar.median, bar.q3))
    name = row.what.replace("`", "")
    weight = ' font-weight="bold"' if bar.ours else ""
    yield f'<text x="{_LABELS - 8}" y="{base}" text-anchor="end">{escape(name)}</text>'
    # Translucent, so that the whisker is visible on it.
    colour = f'fill="{_OURS}" fill-opacity="0.7"' if bar.ours else f'fill="{_OTHER}" fill-opacity="0.45"'
    yield f'<rect x="{_LABELS}" y="{top + 5}" width="{median - _LABELS:.1f}" height="{_ROW - 10}" {colour}/>'
    ends = f"M{q1:.1f} {middle - 4}v8M{q1:.1f} {middle}H{q3:.1f}M{q3:.1f} {middle - 4}v8"
    yield f'<path d="{ends}" stroke="{_TEXT}" stroke-width="1.5" fill="none"/>'
    yield f'<text x="{q3 + 8:.1f}" y="{base}"{weight}>{escape(row.figure.partition(" (")[0])}</text>'
