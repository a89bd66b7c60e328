"""How close the client comes to the minimum that any client must do, in time, instructions and page faults."""

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import ROOT, Row, grouped, ratio, spread, world
from databases import MIDDLE, SPRINT, database
from events import HOOKS, SESSION, hook_input
from harness import daemon as harness
from installed import install
from turns import Program, Turns

_TRUE = "/bin/true"
#: A compiler, and what its static programs are called in the table.
_COMPILERS = {"musl-gcc": "musl", "gcc": "glibc"}
#: The client's own limits, by the libc it is linked with. (That of musl is in processes.py.)
_TARGETS = {"`remaining`, glibc": 1.15}
#: How often a program runs to have its page faults counted: their number depends a little on where its stack begins.
_COUNTED_RUNS = 25
_COLLECTED = re.compile(r"Collected : (\d+)")


def floor(base: Path, rounds: int) -> Iterator[Row]:
    """Time /bin/true, programs that do nothing, minimal clients and our own; count instructions and page faults."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with ExitStack() as stack:
        programs = {_TRUE: Program([_TRUE], environ)}
        for compiler, libc in _COMPILERS.items():
            if shutil.which(compiler) is None:
                yield Row(f"a static program that does nothing, {libc}", f"not measured: no {compiler} here", "", None)
                continue
            built = {name: _compiled(compiler, name, base) for name in ("nothing", "minimal", "echo")}
            programs[f"a static program that does nothing, {libc}"] = Program([built["nothing"]], environ)
            servers = {
                "a C echo server": [built["echo"]],
                "a bare Python loop": [sys.executable, "-I", str(ROOT / "bench" / "echo_server.py"), "loop"],
            }
            for number, (name, command) in enumerate(servers.items()):
                path = stack.enter_context(_server(command, base / f"{libc}-{number}.sock"))
                programs[f"a minimal client, {libc}, against {name}"] = Program([built["minimal"], path], environ)
        programs.update(stack.enter_context(_clients(base)))
        turns = Turns(programs)
        turns.run(rounds)
        for name, times in turns.times.items():
            failed = f"; {turns.failed[name]} failed" if turns.failed[name] else ""
            if name == _TRUE:
                yield Row("floor: /bin/true", spread(times) + failed, "", None)
            else:
                row = ratio(f"floor: {name} ÷ {_TRUE}", times, turns.times[_TRUE], _TARGETS.get(name))
                yield row._replace(figure=f"{row.figure} ({spread(times)}){failed}")
        yield from _instructions(programs)
        for name, program in programs.items():
            count = statistics.median_low(program.page_faults() for _ in range(_COUNTED_RUNS))
            yield Row(f"page faults: {name}", str(count), "", None)


def _compiled(compiler: str, name: str, base: Path) -> str:
    program = base / f"{name}-{compiler}"
    source = ROOT / "bench" / "native" / f"{name}.c"
    subprocess.run([compiler, "-O2", "-static", "-s", "-o", program, source], check=True)
    return str(program)


@contextmanager
def _server(command: Sequence[str], path: Path) -> Iterator[str]:
    server = subprocess.Popen([*command, str(path)])
    try:
        harness.wait_for(path.exists, "the echo server")
        yield str(path)
    finally:
        server.kill()
        server.wait()


@contextmanager
def _clients(base: Path) -> Iterator[Mapping[str, Program]]:
    """Yield our client, built with each libc, and run a daemon that answers it."""
    with world("floor", base) as home:
        database(base, home.interstat, MIDDLE)
        home.start()
        harness.started(home, session=SPRINT, whole=True, token_budget=1_000_000_000)
        harness.started(home, session=SESSION, token_budget="none")
        stdin = base / "hook.json"
        stdin.write_bytes(hook_input(home, HOOKS[0][1]))
        environ = {name: value for name, value in home.environ.items() if name != "PYTHONPATH"}
        sprint = {**environ, "CLAUDE_CODE_SESSION_ID": SPRINT}
        found: dict[str, Program] = {}
        for compiler, libc in _COMPILERS.items():
            programs = install(base / libc, native=True, compiler=compiler) if shutil.which(compiler) else None
            if programs is not None:
                client = str(programs / "fluxbudgetctl")
                found[f"`remaining`, {libc}"] = Program([client, "remaining"], sprint)
                found[f"`hook`, 10 kB, {libc}"] = Program([client, "hook"], environ, str(stdin))
        yield found


def _instructions(programs: Mapping[str, Program]) -> Iterator[Row]:
    """Count the instructions of each program and its dynamic loader. Unlike times, counts are repeatable."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        yield Row("instructions", "not counted: no valgrind here", "", None)
        return
    counts = {name: _count(valgrind, program) for name, program in programs.items()}
    for name, count in counts.items():
        yield Row(f"instructions: {name}", f"{grouped(count)} ({count / counts[_TRUE]:.2f} of /bin/true's)", "", None)


def _count(valgrind: str, program: Program) -> int:
    command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", *program.command]
    with open(program.stdin, "rb") as stdin:
        done = subprocess.run(command, env=program.environ, stdin=stdin, capture_output=True, text=True, check=False)
    found = _COLLECTED.search(done.stderr)
    assert found is not None, done.stderr
    return int(found[1])
