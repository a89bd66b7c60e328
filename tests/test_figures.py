"""The figures in docs/performance.md are those of the last `make bench`."""

import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]


def table(text: str) -> list[list[str]]:
    """Return the cells of all lines of the table in a text."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def results() -> list[list[str]]:
    return table((ROOT / "bench" / "RESULTS.md").read_text())


def test_performance_page_has_the_figures_with_a_target() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = page.partition("<!-- figures -->")[2].partition("<!-- /figures -->")[0]
    head, *rows = results()
    with_target = [row for row in rows if row[2]]
    assert with_target
    assert table(shown) == [head, *with_target], "run 'make bench'"


def test_picture_shows_figures_of_the_table() -> None:
    """Each bar has the name and median of a row, and the bars follow the table's order."""
    picture = ET.parse(ROOT / "docs" / "latency.svg")  # noqa: S314  our own
    texts = [element for element in picture.iter() if element.tag.endswith("text")]
    names = [number for number, element in enumerate(texts) if element.get("text-anchor") == "end"]
    shown = [(texts[number].text, texts[number + 1].text) for number in names]
    medians = [(what.replace("`", ""), figure.partition(" (")[0]) for what, figure, _, _ in results()]
    assert len(shown) > 1
    assert shown == [row for row in medians if row in shown], "run 'make bench'"
