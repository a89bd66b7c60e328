"""Loosening: what lets a run, or a session of it, use more than its limits allow."""

from typing import Literal, NamedTuple

from fluxbudgetd.model import Balance, Event, EventData, Run
from fluxbudgetd.wire.messages import RunStatus
from fluxbudgetd.wire.short import grouped

Action = Literal["raise", "remove", "soften", "detach", "move", "finish", "cancel", "allow", "uninstall"]

_REFUSED: dict[Action, str] = {
    "raise": "the budget of run {} cannot be raised",
    "remove": "the budget of run {} cannot be removed",
    "soften": "the enforcement of run {} cannot be changed to soft",
    "detach": "no session can be detached from run {}",
    "move": "no session can be moved from run {} to another run",
    "finish": "run {} cannot be finished while its budget is exceeded",
    "cancel": "run {} cannot be cancelled while its budget is exceeded",
    "allow": "run {} cannot be allowed to go on",
    "uninstall": "the service cannot be uninstalled",
}


class Loosening(NamedTuple):
    """One loosening of a run. `details` go into its event."""

    action: Action
    details: EventData


def of_change(old: Run, new: Run) -> list[Loosening]:
    """Return how a change of its settings loosens a run."""
    found = []
    if old.token_budget is not None and new.token_budget is None:
        found.append(Loosening("remove", {"from": old.token_budget, "to": None}))
    elif old.token_budget is not None and new.token_budget is not None and new.token_budget > old.token_budget:
        found.append(Loosening("raise", {"from": old.token_budget, "to": new.token_budget}))
    if old.enforcement == "hard" and new.enforcement == "soft":
        found.append(Loosening("soften", {}))
    return found


def of_leaving(run: Run, session: str, to: str | None) -> list[Loosening]:
    """Return how a run is loosened when a session leaves it, for another run or for none."""
    if run.status != "active":
        return []
    return [
        Loosening("detach", {"session": session}) if to is None else Loosening("move", {"session": session, "to": to})
    ]


def of_end(balance: Balance, status: RunStatus) -> list[Loosening]:
    """Return how the end of a run loosens it: its sessions may go on without a limit."""
    if balance.state != "exceeded":
        return []
    return [
        Loosening("cancel" if status == "cancelled" else "finish", {"spent": balance.spent, "budget": balance.budget})
    ]


def data(run: Run, loosening: Loosening, sessions: tuple[str, ...]) -> EventData:
    """Return the data of a loosening's event. `sessions` are those that the process runs in."""
    inside: EventData = {"inside": ",".join(sessions)} if sessions else {}
    return {"action": loosening.action, "enforcement": run.enforcement, **loosening.details, **inside}


def refusal(run: Run, action: Action, hard: Run) -> str:
    """Return why a run may not be loosened. `hard` is the run, or another one that binds the session."""
    return f"inside a session, {_REFUSED[action].format(run.id)}, because run {hard.id} is hard"


def what(run: Run, event: Event) -> str:
    """Return what an event's loosening has done: `budget raised from 1 000 to 2 000 billing tokens`."""
    details = {name: grouped(value) if isinstance(value, int) else value for name, value in event.data.items()}
    unit = f"{run.cost_basis} tokens"
    if "withheld" in event.data:
        wanted = {
            "raise": f"wants to raise the budget from {details.get('from')} to {details.get('to')} {unit}",
            "remove": f"wants to remove the budget of {details.get('from')} {unit}",
            "soften": "wants to change the enforcement from hard to soft",
        }.get(str(details.get("action")), "wants to loosen a limit")
        return f"{event.data.get('via')} {wanted}; confirm it with 'fluxbudgetctl run set --run {run.id}' in a terminal"
    return {
        "raise": f"budget raised from {details.get('from')} to {details.get('to')} {unit}",
        "remove": f"budget of {details.get('from')} {unit} removed",
        "soften": "enforcement changed from hard to soft",
        "detach": f"session {details.get('session')} detached",
        "move": f"session {details.get('session')} moved to run {details.get('to')}",
        "finish": "run finished while its budget was exceeded",
        "cancel": "run cancelled while its budget was exceeded",
        "allow": "run allowed to go on",
        "uninstall": "service uninstalled",
    }.get(str(details.get("action")), "limit loosened")


def who(event: Event) -> str:
    """Return who caused an event: `fluxbudgetctl (process 123) inside session S`."""
    by = event.by
    if by is None:
        return str(event.data.get("via", "a hook"))
    process = f"{by.comm or 'a process'} (process {by.pid})"
    if by.kind == "session":
        return f"{process} inside session {event.data.get('inside')}"
    return {
        "terminal": f"{process} in a terminal",
        "service": f"{process}, without a terminal",
        "unknown": f"{process}, whose ancestors cannot be read",
    }[by.kind]


def line(run: Run, event: Event) -> str:
    """Return a loosening as one line."""
    by = "" if "withheld" in event.data else f", by {who(event)}"
    return f"fluxbudget: run {run.id}: {what(run, event)}{by}"
