"""Draw the screens as SVG pictures of a terminal, from real commands and a real daemon.

    python docs/make_captures.py docs

Everything runs in a throw-away home. The pictures show nothing that changes between two runs of this script.
"""

import fcntl
import json
import os
import pty
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
import termios
import time
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 100
# The width of a cell in rich's pictures.
_CELL = 12.2
PHASE = "executing"
#: run → its project directory, its budget, and what was used: (agent, input, output), where "" is the session itself.
RUNS = {
    "parser-42": (
        "parser",
        250_000,
        [("", 41_000, 13_500), ("fd-safety", 52_000, 9_100), ("fd-quality", 61_000, 8_400)],
    ),
    "billing-7": ("billing", 500_000, [("", 88_000, 21_000), ("fd-correctness", 47_000, 5_500)]),
    "docs-site": ("site", 100_000, [("", 73_000, 32_000)]),
}


def main() -> None:
    """Write the pictures into the directory that the command line names."""
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="fluxbudget-captures-") as directory:
        home = Path(directory)
        environ = {**os.environ, "HOME": directory, "XDG_RUNTIME_DIR": str(home / "rt"), "TERM": "xterm-256color"}
        (home / "rt").mkdir(mode=0o700)
        empty_interstat(home)
        daemon = subprocess.Popen([sys.executable, "-m", "fluxbudgetd"], env=environ, stderr=subprocess.DEVNULL)
        try:
            wait_for(environ)
            for run, (project, budget, usage) in RUNS.items():
                start(home, environ, run, project, budget)
                for number, (agent, given, made) in enumerate(usage):
                    write(home, run, f"{number}", agent, given, made)
            picture(target / "status.svg", "fluxbudgetctl status", capture(["status"], environ))
        finally:
            daemon.terminate()
            daemon.wait()


def ctl(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fluxbudgetctl", *arguments]


def wait_for(environ: dict[str, str]) -> None:
    for _ in range(200):
        if subprocess.run(ctl("ping"), env=environ, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.05)
    raise SystemExit("the daemon does not answer")


def empty_interstat(home: Path) -> None:
    """Make interstat's database, so that its absence is not reported."""
    path = home / ".claude" / "interstat" / "metrics.db"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE agent_runs(id INTEGER PRIMARY KEY, timestamp TEXT, session_id TEXT, agent_name TEXT, model TEXT,"
        " input_tokens INTEGER, output_tokens INTEGER, total_tokens INTEGER); PRAGMA user_version = 2;"
    )
    connection.close()


def start(home: Path, environ: dict[str, str], run: str, project: str, budget: int) -> None:
    (home / project).mkdir()
    words = ["run", "start", "--id", run, "--budget", str(budget), "--session", f"s-{run}", "--phases", PHASE]
    subprocess.run(ctl(*words), env=environ, cwd=home / project, check=True, capture_output=True)


def write(home: Path, run: str, message: str, agent: str, given: int, made: int) -> None:
    """Append a line to a session's transcript, as Claude Code does."""
    own = home / ".claude" / "projects" / "-demo" / f"s-{run}.jsonl"
    path = own if not agent else own.with_suffix("") / "subagents" / f"agent-{message}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if agent:
        path.with_suffix(".meta.json").write_text(json.dumps({"agentType": agent}))
    line = {
        "type": "assistant",
        "sessionId": f"s-{run}",
        "isSidechain": bool(agent),
        "requestId": f"req-{run}-{message}",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "message": {
            "id": f"msg-{run}-{message}",
            "model": "claude-opus-4-6",
            "stop_reason": "end_turn",
            "usage": {"input_tokens": given, "output_tokens": made},
        },
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def capture(words: list[str], environ: dict[str, str]) -> str:
    """Return what a command prints on a terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    shown = {**environ, "COLUMNS": str(WIDTH), "PYTHONUTF8": "1"}
    shown.pop("NO_COLOR", None)
    with subprocess.Popen(ctl(*words), env=shown, stdin=follower, stdout=follower, stderr=follower) as process:
        os.close(follower)
        found = b""
        try:
            while data := os.read(leader, 65536):
                found += data
        except OSError:  # the terminal's other end is closed
            pass
        process.wait()
    os.close(leader)
    return found.decode().replace("\r\n", "\n")


#: A piece of text that begins with spaces.
_INDENTED = re.compile(r' x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)" ([^>]*)>((?:&#160;)+)(?=[^&<\s])')


def _shifted(piece: re.Match[str]) -> str:
    """Move a piece of text to the right instead of beginning it with spaces, which librsvg leaves out."""
    x, y, length, rest, spaces = piece.groups()
    gap = round(len(spaces) // len("&#160;") * _CELL, 1)
    return f' x="{round(float(x) + gap, 1)}" y="{y}" textLength="{round(float(length) - gap, 1)}" {rest}>'


def picture(path: Path, title: str, shown: str) -> None:
    """Write an SVG of a terminal that shows this text. It loads nothing from the network."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(f"$ {title}\n{shown}".rstrip("\n")))
    drawn = console.export_svg(title="fluxbudget", theme=MONOKAI, unique_id="fluxbudget")
    drawn = re.sub(_INDENTED, _shifted, drawn)
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL).replace("Fira Code,", "")
    path.write_text(re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
