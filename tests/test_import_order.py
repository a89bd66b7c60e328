"""Imports only point downwards in the daemon, and the client and its hot path import little."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from harness.imports import HEAVY

#: A room may import the rooms of earlier layers. Rooms in the same layer never import each other.
LAYERS: tuple[set[str], ...] = (
    {"clock", "inotify", "lean", "processes", "structs", "systemd", "threads", "wire"},
    {"errors", "log", "model"},
    {"config"},
    {"policy"},
    {"ledger", "notify", "sources"},
    {"totals"},
    {"decisions", "events"},
    {"service"},
    {"server", "supervision"},
    {"app"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
#: The rooms that may import slow modules, or modules that do I/O.
ONLY_IN = {
    "aiosqlite": {"ledger"},
    "argparse": {"cli"},
    "asyncio": {"config", "lean", "notify", "server"},
    "ctypes": {"inotify"},
    "dbus_fast": {"notify"},
    "socket": {"server", "systemd"},
    "sqlite3": {"ledger", "notify", "sources"},
    "subprocess": {"config", "notify", "sources"},
    "tomllib": {"config"},
    "watchfiles": {"sources"},
    "yaml": {"config"},
}
#: The modules that a hot command of the Python client loads.
HOT = {
    "fluxbudgetctl",
    "fluxbudgetctl.__main__",
    "fluxbudgetctl.bare",
    "fluxbudgetctl.connection",
    "fluxbudgetctl.delivery",
    "fluxbudgetctl.main",
    "fluxbudgetctl.pipe",
    "fluxbudgetctl.stdio",
    "fluxbudgetd",
    "fluxbudgetd.wire",
    "fluxbudgetd.wire.codes",
    "fluxbudgetd.wire.framing",
    "fluxbudgetd.wire.packed",
}


class Module(NamedTuple):
    """A module of ours. `at_once` are the imports that run when it is loaded, `imports` all of them."""

    imports: frozenset[str]
    at_once: frozenset[str]


def with_packages(names: frozenset[str]) -> frozenset[str]:
    """Return the names and the packages that contain them: `a.b.c`, `a.b` and `a`."""
    return frozenset(
        ".".join(parts[: end + 1]) for parts in (name.split(".") for name in names) for end in range(len(parts))
    )


def modules() -> dict[str, Module]:
    """Return the modules of both packages by name."""
    found = {}
    for package in ("fluxbudgetd", "fluxbudgetctl"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in root.rglob("*.py"):
            name = ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            found[name] = path
    trees = {name: ast.parse(path.read_text()) for name, path in found.items()}
    return {
        name: Module(
            frozenset(imported(ast.walk(tree), found)),
            frozenset(imported(tree.body, found)),  # an import inside a function, or for type checkers, costs nothing
        )
        for name, tree in trees.items()
    }


def imported(nodes: Iterator[ast.AST] | list[ast.stmt], ours: Mapping[str, Path]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                yield member if member in ours else str(node.module)


MODULES = modules()


def room(name: str) -> str:
    """Return the room of a module of the daemon. The package's own name stands for its `__init__`."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "fluxbudgetd" else ""


def test_daemon_imports_only_downwards() -> None:
    wrong = []
    for name, module in MODULES.items():
        own = room(name)
        if not own:
            continue
        if own not in RANK:
            wrong.append(f"{name} is in no layer")
            continue
        for other in sorted(module.imports):
            there = room(other)
            if there and there != own and RANK.get(there, len(LAYERS)) >= RANK[own]:
                wrong.append(f"{name} imports {other}, which is not below it")
            elif own not in ONLY_IN.get(other.split(".")[0], {own}):
                wrong.append(f"{name} imports {other}, which only {', '.join(ONLY_IN[other.split('.')[0]])} may")
    assert not wrong, "\n".join(wrong)


def test_server_uses_asyncio_in_one_file() -> None:
    """The rest of it uses anyio."""
    found = [name for name, module in MODULES.items() if room(name) == "server" and "asyncio" in module.imports]
    assert found == ["fluxbudgetd.server.quick"]


def test_client_imports_only_the_wire_and_its_hot_path_nothing_heavy() -> None:
    wrong = [
        f"{name} imports {other}, which is not in the wire"
        for name, module in MODULES.items()
        for other in sorted(module.imports)
        if name.startswith("fluxbudgetctl") and room(other) not in ("", "wire")
    ]
    for name in sorted(HOT):
        if name not in MODULES:
            wrong.append(f"{name} is listed as hot and does not exist")
            continue
        # Where `site` has not imported `os`, it takes longer to import than the hot path.
        heavy = {*HEAVY, "os", "__future__"} & with_packages(MODULES[name].at_once)
        wrong += [f"{name} is hot and imports {other}" for other in sorted(heavy)]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    graph = {name: set(module.imports & MODULES.keys()) for name, module in MODULES.items()}
    cycles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as exc:
            cycle = exc.args[1][::-1]
            cycles.append(" → ".join(cycle))
            graph[cycle[0]].discard(cycle[1])
        else:
            break
    assert not cycles, "\n".join(cycles)


def test_daemon_does_not_load_what_it_does_not_need() -> None:
    """Each of these modules would cost megabytes for as long as the daemon runs."""
    kept_out = ("rich", "pygments", "dbus_fast")
    code = f"import sys, fluxbudgetd.cli; print([name for name in {kept_out} if name in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
