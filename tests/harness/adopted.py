"""An intercore run in a home's project, and a session that works for it."""

from fluxbudgetd.wire import messages
from harness.daemon import Home, wait_for
from harness.intercore import IcProject
from harness.interstat import Interstat

BEAD = "b-1"


class Adopted:
    """An intercore run in a home's project, and what its session uses."""

    def __init__(self, home: Home, interstat: Interstat) -> None:
        self.project = IcProject(home.project)
        self.run = self.project.run_create(scope=BEAD, budget=10_000_000)
        self.used = (0, 0, 0)
        self._home = home
        self._interstat = interstat

    def use(self, input_: int = 0, output: int = 0, cache_read: int = 0) -> None:
        """Use tokens in a session that works for the run's bead."""
        self._interstat.insert(
            "s1",
            model="m",
            bead_id=BEAD,
            phase="executing",
            input_tokens=input_,
            output_tokens=output,
            cache_read_tokens=cache_read,
            cache_creation_tokens=1000,
        )
        self.used = (self.used[0] + input_, self.used[1] + output, self.used[2] + cache_read)

    def request(self) -> messages.Sync:
        return messages.Sync(hints=messages.Hints(cwd=str(self._home.project)))

    def sync(self) -> messages.SyncAnswer:
        """Wait until the run is adopted, then sync as the command does."""

        def synced() -> messages.SyncAnswer | None:
            answer = self._home.ask(self.request())
            assert isinstance(answer, messages.SyncAnswer), answer
            return answer if self.run in answer.runs else None

        answer = wait_for(synced, "the run to be adopted")
        assert isinstance(answer, messages.SyncAnswer)
        return answer

    def rows(self) -> list[tuple[int, int, int]]:
        """Return the numbers of our rows: of one, or none."""
        rows = self.project.query("SELECT * FROM dispatches WHERE agent_type = 'fluxbudget'")
        return [(row["input_tokens"], row["output_tokens"], row["cache_hits"]) for row in rows]

    def database(self) -> messages.DatabaseInfo:
        """Return what `status` says about the database."""
        answer = self._home.ask(messages.Status())
        assert isinstance(answer, messages.StatusAnswer), answer
        (database,) = answer.databases
        return database
