"""Stand-ins for intercore's `ic`, which fulfil its contract for `ic --json run advance`."""

import json
import sys
from pathlib import Path

from harness.scripts import install_python

_MOVES = """
import json, sys
from pathlib import Path
sys.path[:0] = {path!r}
from harness.intercore import IcProject
assert sys.argv[1:4] == ["--json", "run", "advance"], sys.argv
project, run = IcProject(Path.cwd()), sys.argv[4]
before = project.row(run)["phase"]
print(json.dumps({{"advanced": True, "from_phase": before, "to_phase": project.advance(run), "event_type": "advance"}}))
"""


def moving(directory: Path) -> Path:
    """Install an `ic` that moves runs of the database in its working directory; return its own directory, for PATH."""
    install_python(directory / "ic", _MOVES.format(path=sys.path))
    return directory


def printing(directory: Path, out: object, *, code: int = 0, err: str = "", then: str = "") -> Path:
    """Install an `ic` that prints a JSON value (or a text), and records its arguments and directory beside itself.

    `then` are shell commands that it runs before it ends.
    """
    directory.mkdir(parents=True, exist_ok=True)
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
    program = directory / "ic"
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o700)
    return directory


def called(directory: Path) -> tuple[str, list[str]] | None:
    """Return the directory and the arguments of the last call; None if there was none."""
    if not (directory / "words").exists():
        return None
    return (directory / "cwd").read_text().rstrip("\n"), (directory / "words").read_text().splitlines()
