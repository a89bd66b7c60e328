"""What labels mean for a run, and the label that says what a run has used."""

import os
from pathlib import Path

import pytest

from fluxbudgetd.model import Adoption, Bead
from fluxbudgetd.policy import bead_labels
from fluxbudgetd.policy.adoption import Changed
from fluxbudgetd.wire import messages
from harness.beads import BeadsProject
from harness.daemon import Home, started, wait_for
from harness.events import configure
from harness.hooks import write_usage
from harness.values import a_run

PHASES = a_run().phases


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (None, PHASES[0]),
        ("executing", "executing"),
        ("strategy-reviewed", "strategy-reviewed"),
        ("polish", "polish"),
        ("goal-formed", "goal-formed"),
        ("of-its-own", "of-its-own"),
        ("x" * 100, PHASES[0]),
    ],
)
def test_run_begins_in_the_phase_of_its_bead(phase: str | None, expected: str) -> None:
    run = bead_labels.adopted(a_run(), Bead(id="b", phase=phase))
    assert run.phase == expected
    assert run.phase in run.phases


def test_inserted_phase_has_its_place() -> None:
    phases = bead_labels.adopted(a_run(), Bead(id="b", phase="strategy-reviewed")).phases
    assert phases.index("strategy-reviewed") == phases.index("strategized") + 1 == phases.index("planned") - 1


def followed(budget: int | None, *labels: int | None, adopted: Adoption | None = None) -> Changed:
    """Return a run with this budget after it has followed these values of the label."""
    changed = Changed(a_run(token_budget=budget, adopted=adopted or Adoption()))
    for label in labels:
        changed = bead_labels.with_label(changed.run, Bead(id="b", token_budget=label))
    return changed


@pytest.mark.parametrize(
    ("labels", "budget", "wins"),
    [
        ((500,), 100, False),
        ((500, 500), 100, False),
        ((500, 600), 600, True),
        ((500, 600, 500), 500, True),
        ((None, 600), 600, True),
        ((500, 0), None, True),
        ((500, None), 100, False),
        ((500, 600, None), 600, False),
    ],
)
def test_only_another_label_than_at_adoption_overrides(
    labels: tuple[int | None, ...], budget: int | None, wins: bool
) -> None:
    """The first value that is read counts as the one at adoption, so the budget stays intercore's."""
    run = followed(100, *labels).run
    assert run.adopted is not None
    assert (run.token_budget, run.adopted.label_wins, run.adopted.label_budget) == (budget, wins, labels[-1])


def test_label_yields_to_a_person() -> None:
    kept = Adoption(is_label_read=True, label_budget=5, kept=("token_budget",))
    assert followed(100, 600, adopted=kept).run.token_budget == 100


def test_run_that_is_not_adopted_follows_no_label() -> None:
    run = a_run(token_budget=100)
    assert bead_labels.with_label(run, Bead(id="b", token_budget=600)) == Changed(run)


def test_run_of_intercore_gets_its_bead_as_scope() -> None:
    run = a_run(adopted=Adoption(run_id="abcd1234"), scope=None)
    assert bead_labels.linked(run, Bead(id="b")).run.scope == "b"
    run = a_run(adopted=Adoption(run_id="abcd1234"), scope="other")
    assert bead_labels.linked(run, Bead(id="b")).run.scope == "other"


@pytest.fixture
def beads(home: Home, monkeypatch: pytest.MonkeyPatch) -> BeadsProject:
    """A daemon that writes labels, and a project whose run's bead has one."""
    made = BeadsProject(home.project, home.root / "bin")
    made.put("b-1", "sprint", "tokens_spent:5", "tokens_spent:9")
    monkeypatch.setenv("PATH", f"{made.program.parent}:{os.environ['PATH']}")
    configure(home, "[beads]\nwrite_back = true")
    home.start()
    started(home, id="r1", scope="b-1", session="s1")
    return made


def spent_label(beads: BeadsProject) -> list[str]:
    return [label for label in beads.labels("b-1") if label.startswith("tokens_spent:")]


def updates(beads: BeadsProject) -> set[str]:
    """Return the updates without repetitions: on a busy machine, one may be killed and repeated."""
    return {words for words in beads.commands if words.startswith("update ")}


def test_measured_tokens_are_written_at_phase_changes_and_at_the_end(home: Home, beads: BeadsProject) -> None:
    write_usage(home, 700)
    assert home.spent("r1") == 700
    wait_for(lambda: spent_label(beads) == ["tokens_spent:700"], "the first label")
    write_usage(home, 50, message="m2")
    home.ok("advance", "--run", "r1", "--from", PHASES[0])
    wait_for(lambda: spent_label(beads) == ["tokens_spent:750"], "the label after the phase")
    home.ok("advance", "--run", "r1", "--from", PHASES[1])
    write_usage(home, 30, message="m3")
    home.ok("run", "finish", "--run", "r1")
    wait_for(lambda: spent_label(beads) == ["tokens_spent:780"], "the last label")
    assert beads.labels("b-1")[0] == "sprint"
    # The second phase had no usage: its estimate is in no label, and the label has not changed.
    assert len(updates(beads)) == 3


def test_a_failed_write_is_repeated(home: Home, beads: BeadsProject) -> None:
    with beads.locked():
        write_usage(home, 700)
        assert home.spent("r1") == 700
        wait_for(lambda: states(home) == ["slow"], "the call to be killed")
    wait_for(lambda: spent_label(beads) == ["tokens_spent:700"], "the label")
    wait_for(lambda: states(home) == ["ok"], "the call to succeed")


def test_a_restart_writes_a_difference_only(home: Home, beads: BeadsProject) -> None:
    write_usage(home, 700)
    assert home.spent("r1") == 700
    wait_for(lambda: spent_label(beads) == ["tokens_spent:700"], "the label")
    home.stop_all()
    home.start()
    before = len(beads.commands)
    assert home.spent("r1") == 700
    wait_for(lambda: len(beads.commands) > before, "the label to be read")
    home.stop_all()
    assert len(updates(beads)) == 1


def test_sync_writes_at_once_and_says_what_failed(home: Home, beads: BeadsProject) -> None:
    write_usage(home, 10_000)
    assert home.spent("r1") == 10_000
    wait_for(lambda: spent_label(beads) == ["tokens_spent:10000"], "the first label")
    write_usage(home, 1, message="m2")
    assert home.ask(messages.Sync(run="r1")) == messages.SyncAnswer(runs=("r1",), faults=())
    assert spent_label(beads) == ["tokens_spent:10001"]
    write_usage(home, 1, message="m3")
    beads.behave("fail")
    answer = home.ask(messages.Sync(run="r1"))
    assert isinstance(answer, messages.SyncAnswer)
    detail = f"bd failed with exit code 1: Error: the database is damaged ({beads.place})"
    assert [fault.what for fault in answer.faults] == [f"beads: unreadable: {detail}"]
    beads.behave()
    wait_for(lambda: spent_label(beads) == ["tokens_spent:10002"], "the label after the pause")


def test_no_label_is_written_unless_that_is_switched_on(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = BeadsProject(home.project, home.root / "bin")
    made.put("b-1")
    made.put("b-2")
    monkeypatch.setenv("PATH", f"{made.program.parent}:{os.environ['PATH']}")
    home.start()
    started(home, id="r1", scope="b-1", session="s1")
    write_usage(home, 700)
    assert home.spent("r1") == 700
    home.ok("advance", "--run", "r1", "--from", PHASES[0])
    home.ask(messages.Remaining(hints=messages.Hints(scope="b-2", cwd=str(home.project))))
    wait_for(lambda: made.commands, "another bead to be read")
    home.stop_all()
    assert set(made.commands) == {"--json state list b-2"}


def states(home: Home) -> list[str]:
    """Return the states of beads that `doctor` shows."""
    answer = home.ask(messages.Doctor())
    assert isinstance(answer, messages.DoctorAnswer)
    return [source.state for source in answer.sources if source.name == "beads"]
