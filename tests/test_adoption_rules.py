"""How an intercore row determines a run: the rules, as tables of plain values."""

import msgspec
import pytest

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.model import Adoption, Counts, Event, IcRun, PhaseMove, PhaseRecord, Run, Setting
from fluxbudgetd.policy import adoption, loosening, phases, runs
from fluxbudgetd.policy.phases import PhaseEstimate

SECOND = 1_000_000
REST = SECOND - 1
ROW = IcRun(
    id="ab12cd34",
    project_dir="/p",
    goal="a goal",
    status="active",
    phase="brainstorm",
    phases=None,
    complexity=3,
    scope="b-1",
    token_budget=1000,
    warn_pct=80,
    is_hard=False,
    created_at=100 * SECOND,
    updated_at=200 * SECOND,
    ended_at=None,
)
RUN = adoption.adopted(ROW, (), "/p/.clavain/intercore.db", "/p", defaults=RunDefaults(), is_hard=False)
HARD = msgspec.structs.replace(RUN, enforcement="hard")
#: The same, after its row has said that it has a budget of 2000, or none.
RAISED = msgspec.structs.replace(HARD, adopted=Adoption(database="/d", run_id="r", withheld={"token_budget": 2000}))
REMOVED = msgspec.structs.replace(HARD, adopted=Adoption(database="/d", run_id="r", withheld={"token_budget": None}))


def with_adoption(run: Run, **fields: object) -> Run:
    assert run.adopted is not None
    return msgspec.structs.replace(run, adopted=msgspec.structs.replace(run.adopted, **fields))


def adoption_of(run: Run) -> Adoption:
    assert run.adopted is not None
    return run.adopted


@pytest.mark.parametrize(
    ("run", "values", "budget", "enforcement", "withheld", "actions"),
    [
        (RUN, {"token_budget": 2000}, 2000, "soft", {}, []),
        (RUN, {"token_budget": None}, None, "soft", {}, []),
        (RUN, {"token_budget": 500, "enforcement": "hard"}, 500, "hard", {}, []),
        (HARD, {"token_budget": 500}, 500, "hard", {}, []),
        (HARD, {"token_budget": 2000}, 1000, "hard", {"token_budget": 2000}, ["raise"]),
        (HARD, {"token_budget": None}, 1000, "hard", {"token_budget": None}, ["remove"]),
        (HARD, {"enforcement": "soft"}, 1000, "hard", {"enforcement": "soft"}, ["soften"]),
        # Softening and raising at once does not get past it, in either order.
        (
            HARD,
            {"enforcement": "soft", "token_budget": 2000},
            *(1000, "hard", {"enforcement": "soft", "token_budget": 2000}, ["soften", "raise"]),
        ),
        # Reported once for each value; withdrawn if the row no longer says it.
        (RAISED, {"token_budget": 2000}, 1000, "hard", {"token_budget": 2000}, []),
        (RAISED, {"token_budget": 3000}, 1000, "hard", {"token_budget": 3000}, ["raise"]),
        (RAISED, {"token_budget": 1000}, 1000, "hard", {}, []),
        (REMOVED, {"token_budget": None}, 1000, "hard", {"token_budget": None}, []),
        # What a person has set is kept.
        (with_adoption(RUN, kept=("token_budget",)), {"token_budget": 1, "enforcement": "hard"}, 1000, "hard", {}, []),
        (with_adoption(HARD, kept=("enforcement",)), {"enforcement": "soft"}, 1000, "hard", {}, []),
    ],
)  # fmt: skip
def test_settings_of_the_owner(
    run: Run,
    values: dict[Setting, int | str | None],
    budget: int | None,
    enforcement: str,
    withheld: dict[Setting, int | str | None],
    actions: list[str],
) -> None:
    changed = adoption.followed(run, values)
    found = changed.run
    assert (found.token_budget, found.enforcement, adoption_of(found).withheld) == (budget, enforcement, withheld)
    assert [each.action for each in changed.loosened] == actions


def test_a_run_by_hand_follows_nothing() -> None:
    alone = msgspec.structs.replace(RUN, adopted=None)
    assert adoption.followed(alone, {"token_budget": 1}) == (alone, ())


def test_label_of_the_bead_overrides_the_budget_of_the_row() -> None:
    changed = adoption.settings(
        with_adoption(RUN, label_wins=True), msgspec.structs.replace(ROW, token_budget=5), is_hard=False
    )
    assert changed.run.token_budget == 1000


def test_another_budget_ends_an_allowance() -> None:
    allowed = msgspec.structs.replace(HARD, allowed_to=1500, allowed_until=1)
    assert adoption.followed(allowed, {"warn_pct": 70}).run.allowed_to == 1500
    assert adoption.followed(allowed, {"token_budget": 900}).run.allowed_to is None


def test_setting_by_hand_keeps_and_confirms() -> None:
    asked = with_adoption(HARD, withheld={"token_budget": 2000, "enforcement": "soft"}, kept=("status",))
    found = adoption_of(adoption.set_by_hand(asked, ("token_budget",)))
    assert (found.kept, found.withheld) == (("status", "token_budget"), {"enforcement": "soft"})


def moved(run: Run, row: IcRun, *moves: PhaseMove, now: int = 10_000, last_move: int = 9) -> adoption.Moved:
    return adoption.moved(
        run,
        100 * SECOND,
        row,
        moves,
        now=now * SECOND,
        last_move=last_move,
        measured=Counts(1, 0, 5),
        estimate=lambda phase: PhaseEstimate(len(phase), "table", 0),
    )


def move(number: int, at: int, to: str, kind: str = "advance") -> PhaseMove:
    return PhaseMove(number, at * SECOND, "", to, kind)


def in_phase(phase: str, **fields: object) -> IcRun:
    return msgspec.structs.replace(ROW, phase=phase, **fields)


@pytest.mark.parametrize(
    ("moves", "row", "expected"),
    [
        ((), ROW, []),
        # Times are the ends of the events' seconds; within one second they still grow.
        (
            (move(1, 110, "planned"), move(2, 110, "review")),
            in_phase("review"),
            [("brainstorm", 110 * SECOND + REST, 10, "advance"), ("planned", 111 * SECOND, 7, "advance")],
        ),
        # A time before the phase began, or in the future.
        ((move(1, 50, "planned"),), in_phase("planned"), [("brainstorm", 100 * SECOND + 1, 10, "advance")]),
        ((move(1, 99_999, "planned"),), in_phase("planned"), [("brainstorm", 10_000 * SECOND, 10, "advance")]),
        # Left by going back: not completed.
        ((move(1, 110, "brainstorm", "rollback"),), ROW, []),
        (
            (move(1, 110, "planned"), move(2, 120, "brainstorm", "rollback")),
            ROW,
            [("brainstorm", 110 * SECOND + REST, 10, "advance"), ("planned", 120 * SECOND + REST, 0, "rollback")],
        ),
        # Lost events: one move at the time of the row's last change.
        ((), in_phase("planned"), [("brainstorm", 200 * SECOND + REST, 10, "advance")]),
        ((), in_phase("brainstorm", faults=("phase 'a|b' is not allowed",)), []),
        # Moves that were followed before.
        ((move(-1, 110, "planned"),), ROW, []),
    ],
)
def test_moves(moves: tuple[PhaseMove, ...], row: IcRun, expected: list[tuple[str, int, int, str]]) -> None:
    """Each phase that is left: its name, when, its estimate, and the kind of the move."""
    found = moved(RUN, row, *moves)
    assert [(each.record.phase, each.record.until, each.record.estimate, each.kind) for each in found.steps] == expected
    assert found.run.phase == row.phase
    assert adoption_of(found.run).last_move == 9
    assert [each.record.measured.input for each in found.steps] == [5, 0][: len(expected)]


@pytest.mark.parametrize(
    ("ours", "row", "chain"),
    [
        (RUN.phases, in_phase("planned"), adoption.DEFAULT_CHAIN),
        (RUN.phases, in_phase("b", phases=("a", "b")), ("a", "b")),
        (RUN.phases, in_phase("shipping"), adoption.CLAVAIN_CHAIN),
        (("brainstorm", "x"), in_phase("x"), ("brainstorm", "x")),
        (("brainstorm", "x"), in_phase("y"), ("brainstorm", "y", "x")),
        (RUN.phases, in_phase("strategy-reviewed"), ("brainstorm", "strategy-reviewed", *adoption.DEFAULT_CHAIN[1:])),
    ],
)
def test_chain_of_a_followed_run(ours: tuple[str, ...], row: IcRun, chain: tuple[str, ...]) -> None:
    """The row's list, or ours as long as it has the row's phase. An unknown phase follows the one that was left."""
    run = msgspec.structs.replace(RUN, phases=ours)
    assert moved(run, row).run.phases == chain


def test_estimate_of_a_phase_counts_once() -> None:
    """A phase that was completed, left by a move back, and completed again counts with one estimate, the latest."""

    def record(phase: str, since: int, estimate: int) -> PhaseRecord:
        return PhaseRecord(
            phase=phase,
            since=since,
            until=since + 1,
            measured=Counts(),
            estimate=estimate,
            source="table",
            sample_size=0,
        )

    completed = [record("a", 1, 10), record("b", 2, 20), record("a", 3, 30), record("b", 4, 0)]
    assert [(each.phase, each.since) for each in phases.provisional(completed, (), ())] == [("b", 2), ("a", 3)]
    assert phases.provisional(completed, ("a", "b"), ()) == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token_budget": 2000}, "wants to raise the budget from 1 000 to 2 000 billing tokens"),
        ({"token_budget": None}, "wants to remove the budget of 1 000 billing tokens"),
        ({"enforcement": "soft"}, "wants to change the enforcement from hard to soft"),
    ],
)
def test_words_of_what_is_withheld(values: dict[Setting, int | str | None], words: str) -> None:
    """The text says which program wants what, and how to confirm it. Nothing was loosened, so no cause is named."""
    (withheld,) = adoption.followed(HARD, values, owner="beads").loosened
    event = Event(seq=1, at=1, run=HARD.id, kind="run.loosened", data=loosening.data(HARD, withheld, ()))
    confirm = f"confirm it with 'fluxbudgetctl run set --run {HARD.id}' in a terminal"
    assert loosening.line(HARD, event) == f"fluxbudget: run {HARD.id}: beads {words}; {confirm}"


def test_number_of_phases_is_bounded() -> None:
    """A row that enters one new phase after another does not make the run's list of phases grow for ever."""
    new = moved(RUN, in_phase("p299"), *(move(number, 200, f"p{number}") for number in range(1, 300)))
    assert len(new.run.phases) == runs.MAX_PHASES
    assert (new.run.phase, new.steps[-1].record.phase) == ("p299", "p298")
    assert {"p298", "p299"} <= set(new.run.phases)


def test_phase_outside_the_list_keeps_its_place() -> None:
    """A phase that the row's list lacks stays after the phase that the run came from."""
    row = in_phase("b", phases=("a", "b", "c"))
    run = adoption.adopted(row, (), "/d", "/p", defaults=RunDefaults(), is_hard=False)
    row = in_phase("x", phases=("a", "b", "c"))
    run = moved(run, row, move(1, 200, "x", "override"), last_move=1).run
    assert run.phases == ("a", "b", "x", "c")
    assert moved(run, row, last_move=1).run == run
    assert moved(run, in_phase("b", phases=("a", "b", "c")), last_move=1).run.phases == ("a", "b", "c")
