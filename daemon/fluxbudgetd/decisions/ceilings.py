"""Ceilings of sub-agents: one that has used several times its estimate is told to finish, once.

Under hard enforcement it is stopped instead.
"""

from collections.abc import Callable

from fluxbudgetd.config.settings import Settings
from fluxbudgetd.decisions.admission import Admissions
from fluxbudgetd.model import Run
from fluxbudgetd.policy import limits
from fluxbudgetd.policy.limits import Excess

# Bounds memory: beyond that, the sub-agent that was told first may be told again.
_MOST_TOLD = 10_000


class Ceilings:
    """Compares sub-agents with their estimates, and remembers which were told to finish, until the daemon stops."""

    def __init__(self, admissions: Admissions, settings: Settings) -> None:
        self._admissions = admissions
        self._settings = settings
        self._told: dict[tuple[str, str], None] = {}

    def excess(self, run: Run, session: str, agent_id: str) -> Excess | None:
        """Return a sub-agent's excess over its ceiling; None if there is none, or it has no estimate."""
        use = self._admissions.agent(session, agent_id)
        if use is None:
            return None
        return limits.excess(run, use.measured, use.estimate, self._settings.config.admission.subagent_ceiling)

    def tell(self, session: str, agent_id: str) -> Callable[[bool], None] | None:
        """Return None if the sub-agent was told to finish before.

        Otherwise it counts as told from now on; call the result with False if it could not be told.
        """
        key = session, agent_id
        if key in self._told:
            return None
        self._told[key] = None
        if len(self._told) > _MOST_TOLD:
            del self._told[next(iter(self._told))]
        return lambda is_delivered: None if is_delivered else self._told.pop(key, None)
