"""The layers: imports go one way, the client sees the wire and nothing else of the daemon."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

#: Each layer may import the layers before it, and itself; parts of one layer (a set) never import each other.
LAYERS: tuple[set[str], ...] = (
    {"wire", "threads", "lean", "systemd"},
    {"errors"},
    {"model"},
    {"config"},
    {"policy"},
    {"sources", "ledger", "notify"},
    {"engine"},
    {"answers"},
    {"handlers"},
    {"server"},
    {"listening", "log"},
    {"supervision"},
    {"app"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
#: What may be imported where, of everything that costs time or does I/O.
ONLY_IN = {
    "aiosqlite": {"ledger"},
    "watchfiles": {"sources"},
    "dbus_fast": {"notify"},
    "sqlite3": {"sources", "ledger"},
    "yaml": {"config"},
    "tomllib": {"config"},
    "argparse": {"cli"},
    "socket": {"server", "listening", "systemd"},
    "subprocess": {"notify"},
}
LIGHT = {"framing", "packed", "paths", "codes", "text", "short", "state_names", "__init__"}
HOT = {
    "main",
    "hot",
    "asking",
    "connection",
    "environment",
    "failure",
    "pipes",
    "fields",
    "hook",
    "statusline",
    "state_file",
    "__init__",
    "__main__",
}
HEAVY = {
    "msgspec",
    "anyio",
    "rich",
    "argparse",
    "json",
    "socket",
    "asyncio",
    "re",
    "subprocess",
    "fluxbudgetd.wire.messages",
}


def root(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def modules(package: str) -> list[Path]:
    return sorted(root(package).rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):  # a guarded import for type checkers is no import
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(name: str) -> str | None:
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "fluxbudgetd" and len(pieces) > 1 and pieces[1] in RANK else None


def layer(path: Path) -> str:
    return path.relative_to(root("fluxbudgetd")).with_suffix("").parts[0]


def test_daemon_imports_only_downwards() -> None:
    wrong = []
    for path in modules("fluxbudgetd"):
        own = layer(path)
        names = list(imported(path))
        if own == "__init__":
            wrong += [f"{path} imports {name}" for name in names]
            continue
        for name in names:
            other = part(name)
            upwards = other not in (None, own) and RANK[str(other)] >= RANK[own]
            if upwards or own not in ONLY_IN.get(name.split(".")[0], {own}):
                wrong.append(f"{path} ({own}) imports {name}")
    assert not wrong, "\n".join(wrong)


def test_client_imports_only_the_wire() -> None:
    wrong = [
        f"{path} imports {name}"
        for path in modules("fluxbudgetctl")
        for name in imported(path)
        if name.split(".")[0] == "fluxbudgetd" and not name.startswith("fluxbudgetd.wire")
    ]
    assert not wrong, "\n".join(wrong)


def test_hot_path_imports_nothing_heavy() -> None:
    hot = [path for path in modules("fluxbudgetctl") if path.stem in HOT]
    light = [path for path in modules("fluxbudgetd") if path.parent.name == "wire" and path.stem in LIGHT]
    assert {path.stem for path in hot} == HOT
    assert {path.stem for path in light} == LIGHT
    wrong = [
        f"{path} imports {name}"
        for path in (*hot, *light)
        for name in sorted(HEAVY.intersection(imported(path, top_level_only=True)))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_has_a_layer() -> None:
    assert {layer(path) for path in modules("fluxbudgetd")} <= {*RANK, "__init__"}


def test_daemon_does_not_load_what_it_does_not_need() -> None:
    """Each costs megabytes, for as long as the daemon runs."""
    kept_out = ("rich", "pygments", "dbus_fast")
    code = f"import sys, fluxbudgetd.cli; print([name for name in {kept_out} if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
