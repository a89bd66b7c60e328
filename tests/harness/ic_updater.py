"""A process that updates rows of intercore's database at full speed, as `ic` does: it opens, commits and closes it.

Each commit changes the same rows to a new number. Run as `python -m harness.ic_updater PROJECT COUNT`; it fails if any
of its writes does.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.intercore import IcProject

#: The rows that each commit changes to the same number, far apart in the file.
RUNS = ("first", "last")
_FILLERS = 40
_TESTS = Path(__file__).parent.parent


def prepare(project: IcProject) -> None:
    """Add the rows that the writer changes: two runs and a dispatch, with many pages between them."""
    project.run_create(run=RUNS[0], budget=1)
    for number in range(_FILLERS):
        project.run_create("x" * 3000, run=f"filler{number}", status="completed", completed_at=1)
    project.run_create(run=RUNS[1], budget=1)
    project.dispatch(RUNS[1], 1, dispatch="counted")


def write(project: IcProject, count: int) -> None:
    """Commit the numbers 2 to `count` one after the other."""
    for number in range(2, count + 1):
        project.write(
            *(("UPDATE runs SET token_budget = ? WHERE id = ?", (number, run)) for run in RUNS),
            ("UPDATE dispatches SET input_tokens = ? WHERE id = 'counted'", (number,)),
        )


@contextmanager
def writing(project: IcProject, count: int) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that writes to a prepared database; at the end, require that none of its writes failed."""
    command = [sys.executable, "-m", "harness.ic_updater", str(project.root), str(count)]
    with subprocess.Popen(command, cwd=_TESTS, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        _, errors = process.communicate()
    assert process.returncode == 0, errors


if __name__ == "__main__":
    write(IcProject(Path(sys.argv[1])), int(sys.argv[2]))
