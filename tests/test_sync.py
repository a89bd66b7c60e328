"""The request `sync`: adopted runs are refreshed, and their numbers are in intercore's database when it is answered."""

import contextlib
import random
import shutil
import sys
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness import daemon as harness
from harness.daemon import Home, Wire, started, wait_for
from harness.intercore import IcProject
from harness.interstat import Interstat

KILLS = 100
BEAD = "b-1"


class Adopted:
    """A run that intercore keeps, in a home's project, and what its session uses."""

    def __init__(self, home: Home, interstat: Interstat) -> None:
        self.project = IcProject(home.project)
        self.run = self.project.run_create(scope=BEAD, budget=10_000_000)
        self.used = (0, 0, 0)
        self._home = home
        self._interstat = interstat

    def use(self, input_: int = 0, output: int = 0, cache_read: int = 0) -> None:
        """Use tokens in a session that works for the run's bead."""
        self._interstat.insert(
            "s1",
            model="m",
            bead_id=BEAD,
            phase="executing",
            input_tokens=input_,
            output_tokens=output,
            cache_read_tokens=cache_read,
            cache_creation_tokens=1000,
        )
        self.used = (self.used[0] + input_, self.used[1] + output, self.used[2] + cache_read)

    def request(self) -> messages.Sync:
        return messages.Sync(hints=messages.Hints(cwd=str(self._home.project)))

    def sync(self) -> messages.SyncAnswer:
        """Sync as the command does, once the run is adopted."""

        def synced() -> messages.SyncAnswer | None:
            answer = self._home.ask(self.request())
            assert isinstance(answer, messages.SyncAnswer), answer
            return answer if self.run in answer.runs else None

        answer = wait_for(synced, "the run to be adopted")
        assert isinstance(answer, messages.SyncAnswer)
        return answer

    def rows(self) -> list[tuple[int, int, int]]:
        """Return the numbers of our rows: of one, or none."""
        rows = self.project.query("SELECT * FROM dispatches WHERE agent_type = 'fluxbudget'")
        return [(row["input_tokens"], row["output_tokens"], row["cache_hits"]) for row in rows]

    def database(self) -> messages.DatabaseInfo:
        """Return what `status` says about the database."""
        answer = self._home.ask(messages.Status())
        assert isinstance(answer, messages.StatusAnswer), answer
        (database,) = answer.databases
        return database


@pytest.fixture
def adopted(home: Home, interstat: Interstat) -> Adopted:
    return Adopted(home, interstat)


def test_answer_comes_after_the_write(home: Home, adopted: Adopted) -> None:
    adopted.use(100, 20, 3)
    home.start()
    assert adopted.sync().faults == ()
    assert adopted.rows() == [(100, 20, 3)]
    for _ in range(5):
        adopted.use(7, 1)
        assert adopted.sync().faults == ()
        assert adopted.rows() == [adopted.used]
    assert adopted.project.state("phase_tokens", adopted.run) == {
        "executing": {"input_tokens": adopted.used[0], "output_tokens": adopted.used[1]}
    }
    assert home.spend(adopted.run).spent == adopted.project.tokens(adopted.run)
    assert adopted.database().write_state == "ok"
    assert adopted.database().written_at is not None


def test_phase_change_has_the_row_written_without_a_sync(home: Home, adopted: Adopted) -> None:
    home.start()
    adopted.sync()
    adopted.use(100, 20, 3)
    assert home.spent(adopted.run) == 120
    adopted.project.advance(adopted.run)
    wait_for(lambda: adopted.rows() == [(100, 20, 3)], "the row to be written")


def test_dispatches_of_others_are_counted_but_not_written_back(home: Home, adopted: Adopted) -> None:
    """Otherwise intercore's own sum would have them twice."""
    home.start()
    adopted.use(100, 20, 3)
    codex = adopted.project.dispatch(adopted.run, 1000, 2000)
    adopted.sync()
    assert adopted.rows() == [(100, 20, 3)]
    assert home.spent(adopted.run) == adopted.project.tokens(adopted.run) == 3120
    assert [row["id"] for row in adopted.project.rows("dispatches")] == [codex, f"fluxbudget-{adopted.run}"]


def test_next_daemon_writes_what_the_last_one_has_not(home: Home, adopted: Adopted, tmp_path: Path) -> None:
    """Neither a restored backup nor a pruned row makes intercore's sum wrong for long."""
    backup = tmp_path / "backup.db"
    adopted.use(100)
    first = home.start()
    adopted.sync()
    shutil.copy(adopted.project.database, backup)
    adopted.use(1)
    adopted.sync()
    first.kill()
    adopted.use(10)
    shutil.copy(backup, adopted.project.database)
    second = home.start()
    wait_for(lambda: adopted.rows() == [(111, 0, 0)], "the row to be written")
    second.kill()
    adopted.project.delete("dispatches", f"fluxbudget-{adopted.run}")
    home.start()
    wait_for(lambda: adopted.rows() == [(111, 0, 0)], "the row to be written again")


def test_named_run_alone_is_synced(home: Home, adopted: Adopted) -> None:
    """A run that only fluxbudget knows has no place to be written to."""
    home.start()
    adopted.sync()
    by_hand = started(home, id="by-hand")
    answer = home.ask(messages.Sync(run=by_hand))
    assert isinstance(answer, messages.SyncAnswer)
    assert (answer.runs, answer.faults) == ((), ())
    answer = home.ask(messages.Sync(scope=BEAD))
    assert isinstance(answer, messages.SyncAnswer)
    assert answer.runs == (adopted.run,)
    answer = home.ask(messages.Sync(run="unknown"))
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "no_run"


def test_database_that_is_not_written_is_named(home: Home, adopted: Adopted) -> None:
    """In the answer, in `status` and in `doctor`; all other answers are as before."""
    adopted.project.execute("CREATE TRIGGER counts AFTER INSERT ON dispatches BEGIN DELETE FROM runs; END")
    adopted.use(100, 20, 3)
    home.start()
    (fault,) = adopted.sync().faults
    what = f"{adopted.project.database} was not written: drifted: the table dispatches has a trigger, counts"
    assert fault.what == what
    assert (adopted.database().write_state, adopted.database().written_at) == ("drifted", None)
    doctor = home.ask(messages.Doctor())
    assert isinstance(doctor, messages.DoctorAnswer)
    assert what in [finding.what for finding in doctor.findings]
    assert home.spent(adopted.run) == 120
    adopted.project.execute("DROP TRIGGER counts")
    assert adopted.sync().faults == ()
    assert adopted.rows() == [(100, 20, 3)]


@pytest.mark.soak
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
