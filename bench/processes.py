"""Time whole processes as a hook experiences them, from spawn to wait()."""

import contextlib
import json
import shutil
import signal
import sqlite3
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from common import Bar, Row, grouped, ratio, spread, timed, world
from databases import LARGE, MIDDLE, ROW_TOKENS, SMALL, SPRINT, database, sprint_rows
from events import HOOKS, SESSION, hook_input
from harness import daemon as harness
from installed import install
from turns import Program, Turns

_BUDGET = 1_000_000_000
_QUERY = f"SELECT SUM(input_tokens+output_tokens) AS spent FROM agent_runs WHERE session_id='{SPRINT}'"
#: What a hook would run without fluxbudget; $1 is the database, $2 a file with the budget.
_BY_HAND = f"""
spent=$(sqlite3 -json "$1" "{_QUERY}" | jq '.[0].spent // 0')
budget=$(jq .budget "$2")
echo $((budget - spent))
"""
#: The installed Python client, without the cost of its script and of the environment's site module.
_DIRECTLY = "import sys; sys.path.append(sys.argv.pop(1)); from fluxbudgetctl.main import main; sys.exit(main())"

_TRUE, _BARE, _HAND = "/bin/true", "python -I -S -c pass", "bash, sqlite3 and jq, 100 000 rows"
_NATIVE, _FALLBACK, _DIRECT = (
    "`remaining`, native client",
    "`remaining`, Python client as installed",
    "`remaining`, Python client by python -I -S",
)
_STATUSLINE, _AWAY = "`statusline`, native client", "`hook`, native client, no daemon"
_STOPPED = "`hook`, native client, daemon stopped by SIGSTOP, deadline 200 ms"
_SIZES = {f"sqlite3, {grouped(rows)} rows": rows for rows in (SMALL, MIDDLE, LARGE)}
_SQLITE = f"sqlite3, {grouped(MIDDLE)} rows"
_HOOK_NAMES = tuple(f"`hook`, native client, {name}" for name, _ in HOOKS)

#: Programs run interleaved, in sets: the short ones, nearly all of them, and the hooks that write. What ran before
#: affects the CPU caches, and client and daemon together suffer more from that than /bin/true. Hooks that write have
#: their own set because the daemon still works after its answer, which would slow the others down.
_SHORT = frozenset((_TRUE, _NATIVE, _STATUSLINE, _HOOK_NAMES[0], _AWAY))
_WRITING = frozenset((_TRUE, *_HOOK_NAMES[1:]))

#: All programs, in the order of the table. True: the picture, which covers a single set, includes it.
_CONTENDERS = {
    _TRUE: True,
    _NATIVE: True,
    _STATUSLINE: True,
    **dict(zip(_HOOK_NAMES, (True, False, False, False, False), strict=True)),
    _AWAY: False,
    **dict.fromkeys(_SIZES, True),
    _BARE: True,
    _DIRECT: False,
    _FALLBACK: True,
    _HAND: True,
}
#: Which programs are compared, and the target. Comparisons with /bin/true stay within a set of similar programs.
_COMPARISONS: tuple[tuple[str, str, float | None], ...] = (
    (_NATIVE, _TRUE, 0.5),
    (_NATIVE, _SQLITE, 0.3),
    *((_NATIVE, name, None) for name in _SIZES if name != _SQLITE),
    (_NATIVE, _HAND, None),
    (_NATIVE, _FALLBACK, None),
    (_FALLBACK, _BARE, 1.3),
    (_DIRECT, _BARE, None),
    (_HOOK_NAMES[0], _TRUE, 0.55),
    *((name, _TRUE, None) for name in (*_HOOK_NAMES[1:], _STATUSLINE)),
    (_AWAY, _TRUE, 0.25),
)


def processes(base: Path, rounds: int) -> Iterator[Row]:
    """Run all programs in shuffled turns, then a hook while the daemon is stopped."""
    with world("processes", base) as home, contextlib.ExitStack() as stack:
        files = {name: base / f"{rows}.db" for name, rows in _SIZES.items()}
        # The daemon keeps its own file open, so the other files are kept open as well.
        files[_SQLITE] = home.interstat
        for name, path in files.items():
            database(base, path, _SIZES[name])
            reader = stack.enter_context(contextlib.closing(sqlite3.connect(path)))
            reader.execute("SELECT 1 FROM agent_runs").fetchone()
        programs, missing = _programs(base, home, files)
        daemon = home.start()
        harness.started(home, session=SPRINT, whole=True, token_budget=_BUDGET)
        harness.started(home, session=SESSION, token_budget="none")
        _require_equal_answers(programs)
        short = Turns({name: program for name, program in programs.items() if name in _SHORT})
        writing = Turns({name: program for name, program in programs.items() if name in _WRITING})
        mixed = Turns({name: program for name, program in programs.items() if name not in _WRITING - {_TRUE}})
        for turns in (short, writing, mixed):
            turns.run(rounds)
        yield from _ratios(short, writing, mixed, missing)
        yield from _spreads(writing, mixed, missing)
        if _HOOK_NAMES[0] in programs:
            hook = programs[_HOOK_NAMES[0]]
            daemon.signal(signal.SIGSTOP)
            times = [timed(hook.run) for _ in range(max(rounds // 20, 5))]
            daemon.signal(signal.SIGCONT)
            yield Row(_STOPPED, spread(times), "", None)
        else:
            yield Row(_STOPPED, f"not measured: {missing[_HOOK_NAMES[0]]}", "", None)


def _programs(base: Path, home: harness.Home, files: Mapping[str, Path]) -> tuple[dict[str, Program], dict[str, str]]:
    """Return the programs that can be measured, and the reason for each that cannot."""
    # PYTHONPATH would run the client of the source tree instead of the installed one.
    environ = {name: value for name, value in home.environ.items() if name != "PYTHONPATH"}
    sprint = {**environ, "CLAUDE_CODE_SESSION_ID": SPRINT}
    scripts = install(base / "python", native=False)
    assert scripts is not None
    python = str(scripts / "python")
    (site,) = (base / "python").glob("lib/python*/site-packages")
    found = {
        _TRUE: Program(["/bin/true"], environ),
        _BARE: Program([python, "-I", "-S", "-c", "pass"], environ),
        _FALLBACK: Program([str(scripts / "fluxbudgetctl"), "remaining"], sprint),
        _DIRECT: Program([python, "-I", "-S", "-c", _DIRECTLY, str(site), "remaining"], sprint),
    }
    natives = install(base / "native", native=True)
    if natives is not None:
        found.update(_native(str(natives / "fluxbudgetctl"), base, home, environ))
        found[_NATIVE] = Program([str(natives / "fluxbudgetctl"), "remaining"], sprint)
    missing = dict.fromkeys((_NATIVE, _STATUSLINE, *_HOOK_NAMES, _AWAY), "no C compiler here")
    tools = {tool: shutil.which(tool) for tool in ("sqlite3", "jq", "bash")}
    sqlite, bash = tools["sqlite3"], tools["bash"]
    if sqlite is not None:
        found.update({name: Program([sqlite, str(path), _QUERY], environ) for name, path in files.items()})
    missing.update(dict.fromkeys(files, "no sqlite3 here"))
    if bash is not None and all(tools.values()):
        budget = base / "budget.json"
        budget.write_text(json.dumps({"budget": _BUDGET}))
        found[_HAND] = Program([bash, "-c", _BY_HAND, "hook", str(files[_SQLITE]), str(budget)], environ)
    missing[_HAND] = "no " + " and no ".join(tool for tool, path in tools.items() if path is None) + " here"
    return found, {name: why for name, why in missing.items() if name not in found}


def _native(program: str, base: Path, home: harness.Home, environ: Mapping[str, str]) -> Iterator[tuple[str, Program]]:
    """Yield the programs of the native client that read stdin, each with its input file."""
    for number, (name, (_, fields)) in enumerate(zip(_HOOK_NAMES, HOOKS, strict=True)):
        stdin = base / f"hook-{number}.json"
        stdin.write_bytes(hook_input(home, fields))
        yield name, Program([program, "hook"], environ, str(stdin))
    away = {**environ, "FLUXBUDGET_SOCKET": str(base / "absent.sock")}
    yield _AWAY, Program([program, "hook"], away, str(base / "hook-0.json"))
    stdin = base / "statusline.json"
    stdin.write_bytes(hook_input(home, {"model": {"display_name": "Opus"}, "version": "2.1.0"}))
    yield _STATUSLINE, Program([program, "statusline"], environ, str(stdin))


def _require_equal_answers(programs: Mapping[str, Program]) -> None:
    """Fail unless all programs give the expected answers."""
    for name in (_NATIVE, _FALLBACK, _DIRECT, _HAND):
        if name in programs:
            assert programs[name].output() == str(_BUDGET - sprint_rows(MIDDLE) * ROW_TOKENS), name
    for name, rows in _SIZES.items():
        if name in programs:
            assert programs[name].output() == str(sprint_rows(rows) * ROW_TOKENS), name
    for name in (*_HOOK_NAMES, _STATUSLINE, _AWAY):
        if name in programs:
            assert bool(programs[name].output()) == (name == _STATUSLINE), name


def _ratios(short: Turns, writing: Turns, mixed: Turns, missing: Mapping[str, str]) -> Iterator[Row]:
    for ours, theirs, most in _COMPARISONS:
        what, sides = f"{ours} ÷ {theirs}", (ours, theirs)
        if theirs != _TRUE:
            yield _compared(what, mixed, sides, most, missing)
        elif ours in _WRITING:
            yield _compared(what, writing, sides, most, missing)
        else:
            yield _compared(f"{what}, in turns with short programs", short, sides, most, missing)
            yield _compared("… in turns with long programs, too", mixed, sides, None, missing)


def _compared(what: str, turns: Turns, sides: tuple[str, str], most: float | None, missing: Mapping[str, str]) -> Row:
    for name in sides:
        if name in missing:
            return Row(what, f"not measured: {missing[name]}", "" if most is None else f"≤ {most:g}", None)
    ours, theirs = sides
    return ratio(what, turns.times[ours], turns.times[theirs], most)


def _spreads(writing: Turns, mixed: Turns, missing: Mapping[str, str]) -> Iterator[Row]:
    for name, pictured in _CONTENDERS.items():
        rows = MIDDLE if name == _HAND else _SIZES.get(name)
        what = name if rows is None else f"{name}, {grouped(sprint_rows(rows))} of them the session's"
        if name in missing:
            yield Row(what, f"not measured: {missing[name]}", "", None)
            continue
        turns = mixed if name in mixed.times else writing
        times, failed = turns.times[name], turns.failed[name]
        q1, median, q3 = statistics.quantiles(times, n=4)
        bar = Bar(q1, median, q3, ours="client" in name) if pictured else None
        yield Row(what, spread(times) + (f"; {failed} failed" if failed else ""), "", None, bar)
