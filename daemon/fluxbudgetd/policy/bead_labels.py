"""What the labels of a bead mean for its run."""

import msgspec

from fluxbudgetd.model import Adoption, Bead, Run
from fluxbudgetd.policy import adoption
from fluxbudgetd.policy.adoption import Changed
from fluxbudgetd.policy.runs import is_phase
from fluxbudgetd.wire.messages import RunStart

#: The name of the program in the events that report what its labels have changed.
VIA = "beads"
_DEFAULT_COMPLEXITY = 3
# Clavain's shell functions insert this phase.
_INSERTED_AFTER = {"strategy-reviewed": "strategized"}
_OVER = "done"


def is_over(bead: Bead) -> bool:
    """Return True if the bead's sprint has ended, so that it no longer gets a run."""
    return bead.phase == _OVER


def request(bead: Bead, project_dir: str) -> RunStart:
    """Return the request that starts a bead's run. Without a budget, the complexity determines it."""
    return RunStart(
        scope=bead.id,
        project_dir=project_dir,
        complexity=bead.complexity or _DEFAULT_COMPLEXITY,
        token_budget="none" if bead.token_budget == 0 else bead.token_budget,
        cost_basis="billing",
    )


def adopted(run: Run, bead: Bead) -> Run:
    """Return a new run as the run of a bead: in the bead's phase."""
    phases, phase = run.phases, bead.phase
    if phase is None or not is_phase(phase):
        phase = run.phase
    elif phase not in phases:
        chains = (adoption.CLAVAIN_CHAIN, adoption.DEFAULT_CHAIN, adoption.GOAL_CHAIN)
        found = next((chain for chain in chains if phase in chain), phases)
        phases = adoption.with_phase(found, phase, after=_INSERTED_AFTER.get(phase))
    kept = Adoption(label_budget=bead.token_budget, is_label_read=True)
    return msgspec.structs.replace(run, phases=phases, phase=phase, adopted=kept)


def with_label(run: Run, bead: Bead) -> Changed:
    """Return an adopted run after its bead was read.

    A budget in the label that differs from the one at adoption is followed, and wins over intercore's from then on.
    """
    known, label = run.adopted, bead.token_budget
    if known is None:
        return Changed(run)
    if not known.is_label_read:
        read = msgspec.structs.replace(known, is_label_read=True, label_budget=label)
        return Changed(msgspec.structs.replace(run, adopted=read))
    if label == known.label_budget:
        return Changed(run)
    changed = msgspec.structs.replace(known, label_budget=label, label_wins=label is not None)
    if label is None:  # there is no value to confirm any more
        withheld = {name: value for name, value in known.withheld.items() if name != "token_budget"}
        changed = msgspec.structs.replace(changed, withheld=withheld)
    new = msgspec.structs.replace(run, adopted=changed)
    return Changed(new) if label is None else adoption.followed(new, {"token_budget": label or None}, VIA)


def linked(run: Run, bead: Bead) -> Changed:
    """Return intercore's run of a bead: with the bead as its scope, if it has none, and following its label."""
    changed = with_label(run, bead)
    return changed._replace(run=msgspec.structs.replace(changed.run, scope=changed.run.scope or bead.id))
