"""Our row beside a program that writes to the same database all the time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluxbudgetd.events.write_back import WriteBack
from harness import ic_writer
from harness.daemon import killed
from harness.service import within
from harness.sprint import OURS, THEIRS, Sprint

pytestmark = pytest.mark.soak

COMMITS = 5000
#: Without this many rows of ours, the two programs would hardly have met.
FEW = 10


def test_writer_at_full_speed_is_not_disturbed(tmp_path: Path) -> None:
    """None of its writes fails, every row of its own is as it wrote it, and our row is there once, with our number."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    command = [sys.executable, ic_writer.__file__, str(sprint.project.root), THEIRS, str(COMMITS)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    tokens = 0

    with killed(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE)) as writer:

        async def body(write_back: WriteBack) -> None:
            nonlocal tokens
            while writer.poll() is None:
                tokens += 1
                sprint.spend(tokens)
                assert await write_back.sync([sprint.accounts.runs[OURS]], within(60)) == []
                assert sprint.row() == tokens

        sprint.run(body)
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, b"")
    assert tokens > FEW
    rows = sprint.project.rows("dispatches")
    ours = [row for row in rows if row["agent_type"] == "fluxbudget"]
    theirs = [
        (row["id"], row["input_tokens"], row["output_tokens"], row["created_at"]) for row in rows if row not in ours
    ]
    assert [(row["id"], row["input_tokens"]) for row in ours] == [(f"fluxbudget-{THEIRS}", tokens)]
    assert theirs == [(f"d{number:05}", number, 0, number) for number in range(COMMITS)]
    assert sprint.project.state("counter", THEIRS) == COMMITS - 1
    assert sprint.project.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
