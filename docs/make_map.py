"""Draw the daemon's rooms and their imports into docs/ARCHITECTURE.md, between its two markers: `make docs`.

The map is text that GitHub draws as boxes and arrows. An arrow is left out if others lead to the same room: `a` imports
`b` and `c`, `b` imports `c`; then the map says a → b → c.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

BEGIN, END = "<!-- rooms: made by docs/make_map.py -->", "<!-- end of rooms -->"
CLIENT = "fluxbudgetctl"

#: room → the rooms it imports
Graph = Mapping[str, frozenset[str]]


def root(package: str) -> Path:
    """Return a package's folder."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, package  # noqa: S101, PT018  a script of the project's own
    return Path(spec.origin).parent


def imported(path: Path) -> Iterator[str]:
    """Yield the daemon's rooms that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("fluxbudgetd."))


def rooms() -> dict[str, Path]:
    """Return the rooms, with the file whose docstring says what each is for: the daemon's parts, and the client."""
    daemon = root("fluxbudgetd")
    found = {path.stem: path for path in daemon.glob("*.py") if not path.stem.startswith("__")}
    found |= {path.parent.name: path for path in daemon.glob("*/__init__.py")}
    return found | {CLIENT: root(CLIENT) / "__init__.py"}


def graph(found: Mapping[str, Path]) -> Graph:
    """Return which room imports which."""
    return {
        name: frozenset(
            other
            for file in (path.parent.rglob("*.py") if path.stem == "__init__" else (path,))
            for other in imported(file)
            if other in found and other != name
        )
        for name, path in found.items()
    }


def reached(name: str, edges: Graph) -> frozenset[str]:
    """Return what a room imports, directly or through others."""
    return edges[name].union(*(reached(other, edges) for other in edges[name]))


def arrows(edges: Graph) -> Graph:
    """Return the imports without those that other imports imply."""
    return {name: direct.difference(*(reached(other, edges) for other in direct)) for name, direct in edges.items()}


def height(name: str, edges: Graph) -> int:
    """Return the length of the longest chain of imports below a room."""
    return max((height(other, edges) + 1 for other in edges[name]), default=0)


def block() -> Iterator[str]:
    """Yield the lines of the map and the table of rooms, highest first."""
    found = rooms()
    edges = graph(found)
    order = sorted(found, key=lambda name: (name == CLIENT, -height(name, edges), name))
    yield "```mermaid"
    yield "flowchart TD"
    for name in order:
        below = sorted(arrows(edges)[name], key=order.index)
        if below:
            yield f"    {name} --> {' & '.join(below)}"
    yield "```"
    yield ""
    yield "| room | |"
    yield "|---|---|"
    for name in order:
        place = f"{found[name].parent.name}/" if found[name].stem == "__init__" else found[name].name
        words = ast.get_docstring(ast.parse(found[name].read_text())) or ""
        summary = " ".join(words.split("\n\n")[0].split())
        yield f"| `{place}` | {summary} |"


def document(text: str) -> str:
    """Return the document with the current block between its markers."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return "\n".join((f"{before}{BEGIN}", *block(), f"{END}{after}"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(document(target.read_text()))
