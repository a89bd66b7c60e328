"""How a row of intercore's table `runs` determines a run of ours.

A run is adopted with the values of its row, and follows the row from then on:

1. A setting that a person has set with `run set` or `run finish` is *kept*: the row no longer changes it.
2. Under hard enforcement, a higher budget, no budget, and soft enforcement are *withheld*: they are reported, and wait
   until a person sets them. Everything else applies at once.
3. The phase and its history follow the row's moves. A run that moves on completes the phase that it leaves. A phase
   that is left by a move back is not completed, so its estimate is 0.
4. If the moves do not lead to the row's phase, because some are missing, one more move is added that does.

intercore's times are whole seconds. A move counts from the end of its second. Of two moves in the same second, the
later one gets the next microsecond.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.model import Adoption, Counts, IcRun, PhaseMove, PhaseRecord, Run, Setting
from fluxbudgetd.policy import loosening, runs
from fluxbudgetd.policy.loosening import Loosening
from fluxbudgetd.policy.phases import PhaseEstimate
from fluxbudgetd.wire.messages import MAX_TOKENS, Enforcement, RunStatus

#: intercore's default phases, its phases for a goal, and the phases of Clavain's CLI.
DEFAULT_CHAIN = (
    "brainstorm",
    "brainstorm-reviewed",
    "strategized",
    "planned",
    "executing",
    "review",
    "polish",
    "reflect",
    "done",
)
GOAL_CHAIN = ("goal-formed", "planned", "executing", "review", "polish", "reflect", "done")
CLAVAIN_CHAIN = RunDefaults().phases

#: The name of the program in the events that report what it has changed.
VIA = "intercore"
# intercore's times are whole seconds. Because a move counts from the end of its second, usage just before it, such as
# the response that requested the move, belongs to the phase that the run left.
_REST_OF_SECOND = 999_999

_ROLLBACK = "rollback"
_Value = int | str | None


class Changed(NamedTuple):
    """A run after it has followed settings of its owner (the other program), and how these loosen it."""

    run: Run
    loosened: tuple[Loosening, ...] = ()


class Step(NamedTuple):
    """A phase that a run has left, the phase that it has entered, and the kind of the move."""

    record: PhaseRecord
    to: str
    kind: str


class Moved(NamedTuple):
    """A run after its moves, and the phases that it has left, oldest first."""

    run: Run
    steps: tuple[Step, ...] = ()


def refusal(ic: IcRun) -> str | None:
    """Return why a row cannot become a run, or None."""
    if not runs.is_run_id(ic.id):
        return f"its id {ic.id[:200]!r} is not allowed here"
    if not runs.is_phase(ic.phase):
        return f"its phase {ic.phase[:200]!r} is not allowed here"
    return None


def adopted(
    ic: IcRun, moves: Sequence[PhaseMove], database: str, project_dir: str, *, defaults: RunDefaults, is_hard: bool
) -> Run:
    """Return a new run for a row, before its moves are applied. `is_hard`: it is hard even if the row is not."""
    phases = chain(ic, moves)
    first = moves[0].from_phase if moves else ic.phase
    if first not in phases:
        first = phases[0]
    return Run(
        id=ic.id,
        scope=scope(ic),
        project_dir=project_dir,
        goal=ic.goal[: runs.MAX_GOAL],
        complexity=min(max(ic.complexity, 1), 5),
        phases=phases,
        phase=first,
        token_budget=token_budget(ic),
        warn_pct=warn_pct(ic),
        enforcement=enforcement(ic, is_hard=is_hard or defaults.enforcement == "hard"),
        cost_basis="billing",
        status="active",
        started_at=ic.created_at,
        ended_at=None,
        adopted=Adoption(database=database, run_id=ic.id),
    )


def linked(run: Run, ic: IcRun, last_move: int, database: str, defaults: RunDefaults, *, is_hard: bool = False) -> Run:
    """Link a run that was started by hand, or adopted from a bead, to a row, and return it.

    Settings that differ from the defaults were set by hand, so they are kept. Earlier moves of the row are not applied.
    """
    before = run.adopted or Adoption()
    by_hand: dict[Setting, bool] = {
        "token_budget": run.token_budget != defaults.budgets.of_complexity(run.complexity),
        "warn_pct": run.warn_pct != defaults.warn_pct,
        "enforcement": run.enforcement != ("hard" if is_hard else defaults.enforcement),
        "status": run.status != "active",
    }
    kept = before.kept if run.adopted is not None else tuple(name for name, is_kept in by_hand.items() if is_kept)
    adoption = msgspec.structs.replace(before, database=database, run_id=ic.id, last_move=last_move, kept=kept)
    return msgspec.structs.replace(run, adopted=adoption, scope=run.scope or scope(ic))


def moved_to(run: Run, database: str, project_dir: str) -> Run:
    """Return an adopted run after its project was renamed. Its directory changes if it was in the old project."""
    adopted = run.adopted
    if adopted is None:
        return run
    root = os.path.dirname(os.path.dirname(adopted.database))
    is_below = run.project_dir == root or run.project_dir.startswith(f"{root.rstrip('/')}/")
    return msgspec.structs.replace(
        run,
        project_dir=project_dir if is_below else run.project_dir,
        adopted=msgspec.structs.replace(adopted, database=database),
    )


def scope(ic: IcRun) -> str | None:
    """Return the bead of a row; None if it cannot be a scope."""
    return ic.scope if ic.scope and len(ic.scope) <= runs.MAX_ID else None


def token_budget(ic: IcRun) -> int | None:
    """Return the budget of a row, limited to what a run may have; None if it has none."""
    return min(ic.token_budget, MAX_TOKENS) if ic.token_budget and ic.token_budget > 0 else None


def warn_pct(ic: IcRun) -> int:
    """Return the warning percentage of a row, limited to what a run may have."""
    return min(max(ic.warn_pct, 1), 99)


def enforcement(ic: IcRun, *, is_hard: bool) -> Enforcement:
    """Return the enforcement of a row. `is_hard`: the configuration or the project demands a hard limit."""
    return "hard" if ic.is_hard or is_hard else "soft"


def status(ic: IcRun) -> RunStatus:
    """Return the run's status that corresponds to a row's."""
    if ic.status == "active":
        return "active"
    return "done" if ic.status == "completed" else "cancelled"


def chain(ic: IcRun, moves: Iterable[PhaseMove] = ()) -> tuple[str, ...]:
    """Return a row's phases. If it has no list, the phases that it was in determine which default applies."""
    seen = {ic.phase}.union(*((move.from_phase, move.to_phase) for move in moves))
    return with_phase(_valid(ic.phases or ()) or _usual(seen), ic.phase, after=None)


def with_phase(phases: tuple[str, ...], phase: str, after: str | None) -> tuple[str, ...]:
    """Return the phases, with `phase` inserted if it is missing: after the phase `after` if there is one, or first.

    If there are already as many as a run may have, the last one is left out, or the first if the new one becomes last.
    """
    if phase in phases:
        return phases
    at = phases.index(after) + 1 if after in phases else 0
    longer = (*phases[:at], phase, *phases[at:])
    if len(longer) <= runs.MAX_PHASES:
        return longer
    return longer[:-1] if at < len(phases) else longer[1:]


def settings(run: Run, ic: IcRun, *, is_hard: bool) -> Changed:
    """Return a run with the settings of its row. `is_hard`: the configuration or the project demands a hard limit."""
    wins = run.adopted is not None and run.adopted.label_wins
    values: dict[Setting, _Value] = {} if wins else {"token_budget": token_budget(ic)}
    values |= {"warn_pct": warn_pct(ic), "enforcement": enforcement(ic, is_hard=is_hard)}
    return followed(run, values)


def followed(run: Run, values: Mapping[Setting, _Value], owner: str = VIA) -> Changed:
    """Return a run with these settings of its owner, except those that are kept or withheld (rules 1 and 2)."""
    if run.adopted is None:
        return Changed(run)
    withheld = dict(run.adopted.withheld)
    loosened: list[Loosening] = []
    new = run
    for setting, value in values.items():
        if setting in run.adopted.kept:
            continue
        changed = _with(run, setting, value)
        looser = loosening.of_change(run, changed) if run.enforcement == "hard" else []
        if not looser:
            withheld.pop(setting, None)
            new = _with(new, setting, value)
        elif setting not in withheld or withheld[setting] != value:
            withheld[setting] = value
            loosened += [via(each, owner, withheld="yes") for each in looser]
    if new.token_budget != run.token_budget or new.enforcement != "hard":
        new = msgspec.structs.replace(new, allowed_to=None, allowed_until=None)
    if withheld != run.adopted.withheld:
        new = msgspec.structs.replace(new, adopted=msgspec.structs.replace(run.adopted, withheld=withheld))
    return Changed(new, tuple(loosened))


def via(loosened: Loosening, owner: str = VIA, **details: str) -> Loosening:
    """Return a loosening with additional details: the program that caused it, and whether it is withheld."""
    return Loosening(loosened.action, {**loosened.details, "via": owner, **details})


def set_by_hand(run: Run, names: Iterable[Setting]) -> Run:
    """Return an adopted run after a person has set these settings: they are kept, and no longer withheld."""
    if run.adopted is None:
        return run
    kept = tuple(dict.fromkeys((*run.adopted.kept, *names)))
    withheld = {name: value for name, value in run.adopted.withheld.items() if name not in kept}
    return msgspec.structs.replace(run, adopted=msgspec.structs.replace(run.adopted, kept=kept, withheld=withheld))


def withheld_text(run: Run) -> str:
    """Return the withheld values of a run as a text; empty if there are none."""
    if run.adopted is None:
        return ""
    shown = {"token_budget": "budget"}
    return ", ".join(
        f"{shown.get(name, name)} {'none' if value is None else value}" for name, value in run.adopted.withheld.items()
    )


def moved(
    run: Run,
    since: int,
    ic: IcRun,
    moves: Iterable[PhaseMove],
    *,
    now: int,
    last_move: int,
    measured: Counts,
    estimate: Callable[[str], PhaseEstimate],
) -> Moved:
    """Return a run after the moves that it has not followed yet, and after rule 4.

    `since` is when it entered its current phase. `last_move` is the number of the row's last move, which is lower than
    the last followed one if a backup was restored. `measured` is what was measured in the current phase; for further
    phases that are entered and left in the same call, it is not known separately.
    """
    if run.adopted is None:
        return Moved(run)
    known = [move for move in moves if move.number > run.adopted.last_move and runs.is_phase(move.to_phase)]
    phases = _followed_chain(run, ic)
    targets = [(move.at, move.to_phase, move.kind) for move in known]
    if not any(fault.startswith("phase ") for fault in ic.faults):
        targets.append((ic.updated_at, ic.phase, ""))
    steps: list[Step] = []
    phase = run.phase
    for at, to, named in targets:
        if to == phase or not runs.is_phase(to):
            continue
        phases = with_phase(phases, to, after=phase)
        is_back = phase in phases and phases.index(to) < phases.index(phase)
        kind = named or (_ROLLBACK if is_back else "advance")
        until = max(min(at + _REST_OF_SECOND, now), since + 1)
        expected = PhaseEstimate(0, "table", 0) if kind == _ROLLBACK else estimate(phase)
        record = PhaseRecord(
            phase=phase,
            since=since,
            until=until,
            measured=Counts() if steps else measured.capped(),
            estimate=expected.tokens,
            source=expected.source,
            sample_size=expected.sample_size,
        )
        steps.append(Step(record, to, kind))
        since, phase = until, to
    adoption = run.adopted
    if last_move != adoption.last_move:
        adoption = msgspec.structs.replace(adoption, last_move=last_move)
    phases = with_phase(phases, phase, after=None)
    return Moved(msgspec.structs.replace(run, phases=phases, phase=phase, adopted=adoption), tuple(steps))


def _followed_chain(run: Run, ic: IcRun) -> tuple[str, ...]:
    """Return the phases of a followed run: the row's list, ours or a default. They may lack the row's phase."""
    if named := _valid(ic.phases or ()):
        # The row's list may lack the current phase, which was then inserted into ours.
        is_same = tuple(phase for phase in run.phases if phase != run.phase) == named
        return run.phases if is_same and ic.phase == run.phase else named
    usual = _usual({ic.phase})
    return usual if ic.phase not in run.phases and {run.phase, ic.phase} <= set(usual) else run.phases


def _usual(seen: set[str]) -> tuple[str, ...]:
    """Return the default phases of a row without a list that was in these phases."""
    if "goal-formed" in seen:
        return GOAL_CHAIN
    return CLAVAIN_CHAIN if seen.intersection(CLAVAIN_CHAIN).difference(DEFAULT_CHAIN) else DEFAULT_CHAIN


def _valid(phases: Sequence[str]) -> tuple[str, ...]:
    is_valid = len(phases) <= runs.MAX_PHASES and all(map(runs.is_phase, phases))
    return tuple(dict.fromkeys(phases)) if is_valid else ()


def _with(run: Run, setting: Setting, value: _Value) -> Run:
    return msgspec.structs.replace(run, **{setting: value})
