"""A sprint's phases, the macro-stages that they belong to, and the budget that a sprint has by default."""

DEFAULT_PHASES = (
    "brainstorm",
    "brainstorm-reviewed",
    "strategized",
    "planned",
    "plan-reviewed",
    "executing",
    "shipping",
    "reflect",
    "done",
)

MACRO_STAGES = ("discover", "design", "build", "ship", "reflect", "done")

_STAGE_OF_PHASE = {
    "brainstorm": "discover",
    "brainstorm-reviewed": "design",
    "strategized": "design",
    "planned": "design",
    "plan-reviewed": "design",
    "executing": "build",
    "shipping": "ship",
    "reflect": "reflect",
    "done": "done",
}

#: complexity 1–5 → budget in tokens, Clavain's defaults
DEFAULT_BUDGETS = {1: 50_000, 2: 100_000, 3: 250_000, 4: 500_000, 5: 1_000_000}


def macro_stage(phase: str) -> str:
    """Return the macro-stage of a phase; a phase of a run's own chain, known to no stage, is `other`."""
    return _STAGE_OF_PHASE.get(phase, "other")
