"""Our row beside a program that writes to the same database all the time, and after many kills."""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fluxbudgetd.events.write_back import WriteBack
from harness import daemon as harness
from harness import ic_writer
from harness.adopted import Adopted
from harness.daemon import Home, Wire, killed, wait_for
from harness.interstat import Interstat
from harness.service import within
from harness.sprint import OURS, THEIRS, Sprint

pytestmark = pytest.mark.soak

KILLS = 100
COMMITS = 5000
#: Without this many rows of ours, the two programs would hardly have met.
FEW = 10


@pytest.fixture
def adopted(home: Home, interstat: Interstat) -> Adopted:
    return Adopted(home, interstat)


def writing(project: Path, run: str) -> subprocess.Popen[bytes]:
    """Start a process that writes to the database of a project."""
    command = [sys.executable, ic_writer.__file__, str(project), run, str(COMMITS)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE)


def test_writer_at_full_speed_is_not_disturbed_by_rows(tmp_path: Path) -> None:
    """None of its writes fails, its own rows are unchanged, and our row is there once, with our number."""
    sprint = Sprint(tmp_path)
    sprint.adopt()
    tokens = 0

    with killed(writing(sprint.project.root, THEIRS)) as writer:

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


def test_daemon_and_writer_at_full_speed_agree(home: Home, adopted: Adopted) -> None:
    """The daemon reads every dispatch of the writer, and intercore's sum has every token of ours, once."""
    home.start()
    adopted.sync()
    syncs = 0
    with killed(writing(adopted.project.root, adopted.run)) as writer:
        while writer.poll() is None:
            syncs += 1
            adopted.use(syncs, 1, 1)
            assert adopted.sync().faults == ()
            assert adopted.rows() == [adopted.used]
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, b"")
    assert syncs > FEW
    # An answer waits only briefly for intercore's database.
    wait_for(
        lambda: home.spent_once_fresh(adopted.run) == adopted.project.tokens(adopted.run), "every dispatch to be read"
    )
    assert adopted.project.tokens(adopted.run) == sum(range(COMMITS)) + adopted.used[0] + adopted.used[1]
    assert adopted.database().state == "ok"


def test_row_is_right_after_each_of_many_kills(home: Home, adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kill comes at a random time between a commit by interstat and the answer that follows the write."""
    # The other tests run the daemon under the detector, but it would slow down a hundred starts.
    monkeypatch.setattr(harness, "DAEMON", [sys.executable, "-m", "fluxbudgetd"])
    chance = random.Random(19)
    before = adopted.project.query("SELECT * FROM runs"), adopted.project.query("SELECT * FROM phase_events")
    daemon = home.start()
    adopted.use(1, 1, 1)
    adopted.sync()
    for number in range(KILLS):
        adopted.use(chance.randrange(1000), chance.randrange(1000), number)
        with Wire(home.socket) as wire:
            wire.send(adopted.request())
            wire.socket.settimeout(chance.random() * 0.1)
            with contextlib.suppress(TimeoutError):
                wire.receive()
            daemon.kill()
        daemon = home.start()
        assert adopted.sync().faults == ()
        assert adopted.rows() == [adopted.used], f"after kill {number}"
    assert (adopted.project.query("SELECT * FROM runs"), adopted.project.query("SELECT * FROM phase_events")) == before
    assert adopted.project.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
