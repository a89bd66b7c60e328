"""The request `sync`: when it is answered, adopted runs are refreshed and their numbers are in intercore's database."""

import shutil
from pathlib import Path

import pytest

from fluxbudgetd.wire import messages
from harness.adopted import BEAD, Adopted
from harness.daemon import Home, started, wait_for
from harness.events import configure
from harness.interstat import Interstat


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
    assert home.spent_once_fresh(adopted.run) == 120
    adopted.project.advance(adopted.run)
    wait_for(lambda: adopted.rows() == [(100, 20, 3)], "the row to be written")


def test_dispatches_of_others_are_counted_but_not_written_back(home: Home, adopted: Adopted) -> None:
    """Otherwise intercore's own sum would count them twice."""
    home.start()
    adopted.use(100, 20, 3)
    codex = adopted.project.dispatch(adopted.run, 1000, 2000)
    adopted.sync()
    assert adopted.rows() == [(100, 20, 3)]
    assert home.spent_once_fresh(adopted.run) == adopted.project.tokens(adopted.run) == 3120
    assert [row["id"] for row in adopted.project.rows("dispatches")] == [codex, f"fluxbudget-{adopted.run}"]


def test_project_that_was_deleted_after_its_run_is_no_fault(home: Home, adopted: Adopted) -> None:
    """While the run is active, it is one; a run that has ended needs no row in a database that is gone."""
    home.start()
    adopted.use(100)
    assert adopted.sync().faults == ()
    directory = adopted.project.database.parent
    directory.rename(home.root / "away")
    (fault,) = adopted.sync().faults
    assert "absent" in fault.what
    (home.root / "away").rename(directory)
    adopted.project.complete(adopted.run)
    wait_for(lambda: home.details(adopted.run).run.status == "done", "the end of the run")
    shutil.rmtree(directory)
    adopted.use(100)
    assert adopted.sync().faults == ()


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


def test_rearmed_check_of_intercore_refuses_every_time(home: Home, adopted: Adopted) -> None:
    """The daemon notices the refusal by itself. With budget again, it leaves intercore's record alone."""
    configure(home, "[intercore]\nrearm = true\n")
    adopted.project.set(adopted.run, token_budget=100)
    adopted.use(100)
    home.start()
    adopted.sync()
    for _ in range(3):
        assert adopted.project.refuses(adopted.run)
        wait_for(lambda: adopted.project.state("budget.exceeded", adopted.run) is None, "the record to be removed")
    adopted.project.set(adopted.run, token_budget=1000)
    wait_for(lambda: home.spend(adopted.run).budget == 1000, "the budget to be read")
    adopted.project.set_budget_exceeded(adopted.run)
    adopted.sync()
    assert adopted.project.state("budget.exceeded", adopted.run) is not None


def test_named_run_alone_is_synced(home: Home, adopted: Adopted) -> None:
    """A run that only fluxbudget knows cannot be written back."""
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
    assert home.spent_once_fresh(adopted.run) == 120
    adopted.project.execute("DROP TRIGGER counts")
    assert adopted.sync().faults == ()
    assert adopted.rows() == [(100, 20, 3)]
