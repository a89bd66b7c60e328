"""Starting and changing runs: what is allowed, what the defaults are, when two requests mean the same run."""

import re
from collections.abc import Sequence
from typing import Literal, cast, get_args

import msgspec

from fluxbudgetd.config.schema import RunDefaults
from fluxbudgetd.errors import BadInputError, ConflictError
from fluxbudgetd.model import Run
from fluxbudgetd.wire.messages import MAX_TOKENS, CostBasis, Enforcement, RunSet, RunStart

_COMPLEXITIES = range(1, 6)
FOLLOW_ENDED_MICROS = 48 * 3600 * 1_000_000
"""The sources of a finished run are read for this long, since late numbers are the rule."""

_RUN_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A phase is delimited by bars in a refusal line and by commas on the command line.
_PHASE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MAX_PHASES = 64
_MAX_ID = 512
_MAX_GOAL = 4096


def is_followed(run: Run, now: int) -> bool:
    """Return True if the run's usage is still read from its sources."""
    return run.ended_at is None or now - run.ended_at < FOLLOW_ENDED_MICROS


def new_run(asked: RunStart, run_id: str, now: int, defaults: RunDefaults) -> Run:
    """Return the run that a request asks for, with defaults filled in; raises `BadInputError`."""
    complexity = defaults.complexity if asked.complexity is None else asked.complexity
    if complexity not in _COMPLEXITIES:
        raise BadInputError(f"complexity {complexity} is not allowed", "complexity is 1, 2, 3, 4 or 5")
    phases = defaults.phases if asked.phases is None else _phases(asked.phases)
    budget = defaults.budgets.of_complexity(complexity) if asked.token_budget is None else _budget(asked.token_budget)
    goal = asked.goal or ""
    if len(goal) > _MAX_GOAL:
        raise BadInputError(f"the goal has {len(goal)} characters", f"at most {_MAX_GOAL} are allowed")
    return Run(
        id=_run_id(run_id),
        scope=None if asked.scope is None else foreign_id("scope", asked.scope),
        project_dir=_project(asked.project_dir),
        goal=goal,
        complexity=complexity,
        phases=phases,
        phase=phases[0],
        token_budget=budget,
        warn_pct=_warn_pct(defaults.warn_pct if asked.warn_pct is None else asked.warn_pct),
        enforcement=_enforcement(asked.enforcement or defaults.enforcement),
        cost_basis=_cost_basis(asked.cost_basis or defaults.cost_basis),
        status="active",
        started_at=now,
        ended_at=None,
    )


def changed_run(run: Run, asked: RunSet) -> Run:
    """Return the run with what the request changes; raises `BadInputError`, or `ConflictError` on an ended run."""
    if run.status != "active":
        raise ConflictError(f"run {run.id} is {run.status}", "only an active run can be changed")
    return msgspec.structs.replace(
        run,
        token_budget=run.token_budget if asked.token_budget is None else _budget(asked.token_budget),
        warn_pct=run.warn_pct if asked.warn_pct is None else _warn_pct(asked.warn_pct),
        enforcement=run.enforcement if asked.enforcement is None else _enforcement(asked.enforcement),
    )


def require_same(asked: RunStart, now_is: Run, was: Run, defaults: RunDefaults) -> None:
    """Raise `ConflictError` unless the request can mean this run.

    Every argument that was given must be what the run was started with (`was`) or what it is now: a hook that starts
    the run again at every session start goes on finding it after `run set`.
    """
    if now_is.status != "active":
        raise ConflictError(f"run {now_is.id} exists and is {now_is.status}", "start the new run under another id")
    wanted = new_run(asked, now_is.id, now_is.started_at, defaults)
    given = {
        "scope": asked.scope is not None,
        "project_dir": asked.project_given,
        "goal": asked.goal is not None,
        "complexity": asked.complexity is not None,
        "token_budget": asked.token_budget is not None,
        "warn_pct": asked.warn_pct is not None,
        "enforcement": asked.enforcement is not None,
        "cost_basis": asked.cost_basis is not None,
        "phases": asked.phases is not None,
    }
    for field in (name for name, is_given in given.items() if is_given):
        value = getattr(wanted, field)
        if value not in (getattr(now_is, field), getattr(was, field)):
            raise ConflictError(
                f"run {now_is.id} exists with another {field}: {_shown(getattr(now_is, field))}, not {_shown(value)}",
                f"change it with 'fluxbudgetctl run set --run {now_is.id}', or start a run with another id",
            )


def foreign_id(what: str, value: str) -> str:
    """Return a session id or scope. Other programs choose them, so only empty and absurdly long ones are refused."""
    if not 0 < len(value) <= _MAX_ID:
        raise BadInputError(f"a {what} of {len(value)} characters is not allowed", f"1 to {_MAX_ID} characters")
    return value


def _run_id(value: str) -> str:
    if not _RUN_ID.fullmatch(value):
        raise BadInputError(
            f"run id {_shown(value)} is not allowed",
            "1 to 128 letters, digits, dots, colons, underscores or hyphens",
        )
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
    hint = f"1 to {_MAX_PHASES} different names of letters, digits, dots, colons, underscores or hyphens"
    if not 0 < len(value) <= _MAX_PHASES or len(set(value)) != len(value):
        raise BadInputError(f"a chain of these {len(value)} phases is not allowed: {','.join(value)[:200]}", hint)
    for name in value:
        if not _PHASE.fullmatch(name):
            raise BadInputError(f"phase {_shown(name)} is not allowed", hint)
    return tuple(value)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
