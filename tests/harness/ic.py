"""Programs in place of intercore's `ic`, which keep its contract for `ic --json run advance`."""

import json
import sys
from pathlib import Path

_MOVES = """
import json, sqlite3, sys, time
words = [word for word in sys.argv[1:] if not word.startswith("--")]
assert sys.argv[1:4] == ["--json", "run", "advance"] and len(words) == 3, sys.argv
db = sqlite3.connect(".clavain/intercore.db", timeout=5, isolation_level=None)
db.execute("BEGIN IMMEDIATE")
((phase, phases, status),) = db.execute("SELECT phase, phases, status FROM runs WHERE id=?", (words[2],))
chain, now = json.loads(phases), int(time.time())
if status != "active" or phase == chain[-1]:
    sys.exit("ic: run advance: the run has ended")
to = chain[chain.index(phase) + 1]
reasons = [word.partition("=")[2] for word in sys.argv if word.startswith("--skip-reason=")]
db.execute("UPDATE runs SET phase=?, updated_at=? WHERE id=?", (to, now, words[2]))
db.execute(
    "INSERT INTO phase_events(run_id, from_phase, to_phase, event_type, reason, created_at) VALUES (?,?,?,?,?,?)",
    (words[2], phase, to, "advance", "".join(reasons) or None, now),
)
db.execute("COMMIT")
db.close()
print(json.dumps({"advanced": True, "from_phase": phase, "to_phase": to, "event_type": "advance", "reason": ""}))
"""


def _installed(directory: Path, text: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / "ic"
    program.write_text(text)
    program.chmod(0o700)
    return directory


def moving(directory: Path) -> Path:
    """Install an `ic` that moves the runs of a real database; return the directory, for PATH."""
    return _installed(directory, f"#!{sys.executable}\n{_MOVES}")


def printing(directory: Path, out: object, *, code: int = 0, err: str = "", then: str = "") -> Path:
    """Install an `ic` that prints a JSON value (or a text), and records its arguments and directory beside itself.

    `then` are shell commands that it runs before it ends.
    """
    (directory / "out").parent.mkdir(parents=True, exist_ok=True)
    (directory / "out").write_text(out if isinstance(out, str) else json.dumps(out))
    (directory / "err").write_text(err)
    lines = (
        "#!/bin/sh",
        f'here="{directory}"',
        'pwd >"$here/cwd"',
        'printf "%s\\n" "$@" >"$here/words"',
        'cat "$here/out"',
        'cat "$here/err" >&2',
        then,
        f"exit {code}",
    )
    return _installed(directory, "\n".join(lines) + "\n")


def called(directory: Path) -> tuple[str, list[str]] | None:
    """Return the directory and the arguments of the last call; None if there was none."""
    if not (directory / "words").exists():
        return None
    return (directory / "cwd").read_text().rstrip("\n"), (directory / "words").read_text().splitlines()
