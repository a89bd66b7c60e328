"""Starting and changing runs: what is allowed, what the defaults are, when two requests mean the same run."""

import re
from collections.abc import Sequence
from typing import Literal, cast, get_args

import msgspec

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Run, Setting
from fluxbudgetd.wire.messages import MAX_TOKENS, CostBasis, Enforcement, RunSet, RunStart

_COMPLEXITIES = range(1, 6)
FOLLOW_ENDED_MICROS = 48 * 3600 * 1_000_000
"""How long the sources of an ended run are still read, because numbers often arrive late."""

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}")
# A phase is delimited by bars in a refusal line and by commas on the command line.
_PHASE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
MAX_PHASES = 64
MAX_ID = 512
MAX_GOAL = 4096


def is_followed(run: Run, now: int) -> bool:
    """Return True if the run's usage is still read from its sources."""
    return run.ended_at is None or now - run.ended_at < FOLLOW_ENDED_MICROS


def is_run_id(text: str) -> bool:
    """Return True if a run may have this id."""
    return _RUN_ID.fullmatch(text) is not None


def is_phase(text: str) -> bool:
    """Return True if a phase may have this name."""
    return _PHASE.fullmatch(text) is not None


def new_run(request: RunStart, run_id: str, now: int, defaults: RunDefaults) -> Run:
    """Return the requested run, with defaults filled in; raises `BadInputError`."""
    if not is_run_id(run_id):
        raise BadInputError(
            f"run id {_shown(run_id)} is not allowed",
            "1 to 128 letters, digits, '_', '.', ':' or '-'; the first is a letter, a digit or '_'",
        )
    return _requested(request, run_id, now, defaults)


def _requested(request: RunStart, run_id: str, now: int, defaults: RunDefaults) -> Run:
    complexity = defaults.complexity if request.complexity is None else request.complexity
    if complexity not in _COMPLEXITIES:
        raise BadInputError(f"complexity {complexity} is not allowed", "complexity is 1, 2, 3, 4 or 5")
    phases = defaults.phases if request.phases is None else _phases(request.phases)
    budget = (
        defaults.budgets.of_complexity(complexity) if request.token_budget is None else _budget(request.token_budget)
    )
    goal = request.goal or ""
    if len(goal) > MAX_GOAL:
        raise BadInputError(f"the goal has {len(goal)} characters", f"at most {MAX_GOAL} are allowed")
    return Run(
        id=run_id,
        scope=None if request.scope is None else foreign_id("scope", request.scope),
        project_dir=_project(request.project_dir),
        goal=goal,
        complexity=complexity,
        phases=phases,
        phase=phases[0],
        token_budget=budget,
        warn_pct=_warn_pct(defaults.warn_pct if request.warn_pct is None else request.warn_pct),
        enforcement=_enforcement(request.enforcement or defaults.enforcement),
        cost_basis=_cost_basis(request.cost_basis or defaults.cost_basis),
        status="active",
        started_at=now,
        ended_at=None,
    )


def changed_run(run: Run, request: RunSet) -> Run:
    """Return the run with what the request changes; raises `BadInputError`, or `ConflictError` on an ended run.

    Another budget, and soft enforcement, end an allowance.
    """
    if run.status != "active":
        raise ConflictError(f"run {run.id} is {run.status}", "only an active run can be changed")
    changed = msgspec.structs.replace(
        run,
        token_budget=run.token_budget if request.token_budget is None else _budget(request.token_budget),
        warn_pct=run.warn_pct if request.warn_pct is None else _warn_pct(request.warn_pct),
        enforcement=run.enforcement if request.enforcement is None else _enforcement(request.enforcement),
    )
    if changed.token_budget == run.token_budget and changed.enforcement == "hard":
        return changed
    return msgspec.structs.replace(changed, allowed_to=None, allowed_until=None)


def names_set(request: RunSet) -> tuple[Setting, ...]:
    """Return the settings that a request gives."""
    given: dict[Setting, object] = {
        "token_budget": request.token_budget,
        "warn_pct": request.warn_pct,
        "enforcement": request.enforcement,
    }
    return tuple(name for name, value in given.items() if value is not None)


def require_same(request: RunStart, run: Run, started: Run, defaults: RunDefaults) -> None:
    """Raise `ConflictError` unless the request can mean this run.

    Every argument that was given must have the value that the run was started with (`started`) or has now (`run`), so a
    hook that repeats `run start` still finds the run after `run set`.
    """
    if run.status != "active":
        raise ConflictError(f"run {run.id} exists and is {run.status}", "start the new run under another id")
    # Runs of earlier versions may have ids that are no longer allowed.
    wanted = _requested(request, run.id, run.started_at, defaults)
    is_given = {
        "scope": request.scope is not None,
        "project_dir": request.project_given,
        "goal": request.goal is not None,
        "complexity": request.complexity is not None,
        "token_budget": request.token_budget is not None,
        "warn_pct": request.warn_pct is not None,
        "enforcement": request.enforcement is not None,
        "cost_basis": request.cost_basis is not None,
        "phases": request.phases is not None,
    }
    for field in (name for name, given in is_given.items() if given):
        value = getattr(wanted, field)
        if value not in (getattr(run, field), getattr(started, field)):
            raise ConflictError(
                f"run {run.id} exists with another {field}: {_shown(getattr(run, field))}, not {_shown(value)}",
                f"change it with 'fluxbudgetctl run set --run {run.id}', or start a run with another id",
            )


def taken_over(request: RunStart, run: Run, defaults: RunDefaults) -> RunSet:
    """Return the settings that `run start` changes in a run that another program has already started.

    A setting that a person has set before stays. The run's goal, complexity and directory stay, too. Raises
    `ConflictError` if the request cannot mean this run.
    """
    settings = msgspec.structs.replace(request, token_budget=None, warn_pct=None, enforcement=None)
    others = msgspec.structs.replace(settings, goal=None, complexity=None, project_given=False)
    require_same(others, run, run, defaults)
    kept = () if run.adopted is None else run.adopted.kept
    return RunSet(
        token_budget=None if "token_budget" in kept else request.token_budget,
        warn_pct=None if "warn_pct" in kept else request.warn_pct,
        enforcement=None if "enforcement" in kept else request.enforcement,
    )


def foreign_id(what: str, value: str) -> str:
    """Return a session id or scope. Other programs choose them, so only empty and very long ones are refused."""
    if not 0 < len(value) <= MAX_ID:
        raise BadInputError(f"a {what} of {len(value)} characters is not allowed", f"1 to {MAX_ID} characters")
    return value


def _project(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise BadInputError(f"project directory {_shown(value)} is not absolute", "give an absolute path")
    return value


def _budget(value: int | Literal["none"]) -> int | None:
    if value == "none":
        return None
    if not 0 < value <= MAX_TOKENS:
        raise BadInputError(f"a budget of {value} tokens is not allowed", "a whole number above 0, or 'none'")
    return value


def _warn_pct(value: int) -> int:
    if not 1 <= value <= 99:  # noqa: PLR2004  the bounds are the rule
        raise BadInputError(f"a warning percentage of {value} is not allowed", "1 to 99")
    return value


def _enforcement(value: str) -> Enforcement:
    for allowed in get_args(Enforcement):
        if value == allowed:
            return cast("Enforcement", allowed)
    raise BadInputError(f"enforcement {_shown(value)} is not allowed", f"one of: {', '.join(get_args(Enforcement))}")


def _cost_basis(value: str) -> CostBasis:
    for allowed in get_args(CostBasis):
        if value == allowed:
            return cast("CostBasis", allowed)
    raise BadInputError(f"cost basis {_shown(value)} is not allowed", f"one of: {', '.join(get_args(CostBasis))}")


def _phases(value: Sequence[str]) -> tuple[str, ...]:
    hint = f"1 to {MAX_PHASES} different names of letters, digits, dots, colons, underscores or hyphens"
    if not 0 < len(value) <= MAX_PHASES or len(set(value)) != len(value):
        raise BadInputError(f"invalid list of {len(value)} phases: {','.join(value)[:200]}", hint)
    for name in value:
        if not is_phase(name):
            raise BadInputError(f"phase {_shown(name)} is not allowed", hint)
    return tuple(value)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
