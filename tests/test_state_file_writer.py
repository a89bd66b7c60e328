"""Which runs have a marker: those that have spent all that a hard limit lets them spend."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from fluxbudgetd.events.state_file_writer import StateFileWriter
from fluxbudgetd.model import Counts, PhaseRecord
from fluxbudgetd.totals.accounts import Accounts
from harness.values import NOW, a_run

BUDGET = 1000
#: The whole budget is spent on a phase.
SPENT = PhaseRecord(
    phase="brainstorm", since=NOW, until=NOW, measured=Counts(), estimate=BUDGET, source="table", sample_size=0
)


class Written:
    """A writer's files, and the run `r1`, which has spent its budget under a hard limit."""

    def __init__(self, root: Path) -> None:
        self.now = NOW
        self.root = root
        self._accounts = Accounts(self._on_change)
        self._writer = StateFileWriter(
            self._accounts, str(root / "state"), str(root / "hard"), lambda: self.now, lambda _: False
        )
        self._accounts.put_run(a_run(token_budget=BUDGET, enforcement="hard")).has_sessions = True
        self._accounts.put_phases("r1", (SPENT,))

    def _on_change(self, run: str) -> None:
        if hasattr(self, "_writer"):
            self._writer.request(run)

    def change(self, **fields: Any) -> None:
        """Change the run, as a client does."""
        self._accounts.put_run(msgspec.structs.replace(self._accounts.runs["r1"].run, **fields))

    async def until(self, *, is_marked: bool) -> None:
        """Wait until the run has a marker, or has none."""
        with anyio.fail_after(60):
            while (self.root / "hard" / "r1").exists() != is_marked:  # noqa: ASYNC110  it is a file
                await anyio.sleep(0.005)

    def state(self) -> str:
        return (self.root / "state" / "runs" / "r1").read_text()

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        """Serve while a test's body runs."""

        async def around() -> None:
            await self._writer.open()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._writer.serve)
                self.change()
                await body()
                tasks.cancel_scope.cancel()

        anyio.run(around)


def test_marker_stays_during_an_allowance_of_time(tmp_path: Path) -> None:
    """When the time is over, no daemon may be there to write it again."""
    written = Written(tmp_path)

    async def body() -> None:
        await written.until(is_marked=True)
        written.change(allowed_until=written.now + 60_000_000)
        with anyio.fail_after(60):
            while "allowed_until=2026-02-20T16:47:40.000000Z\n" not in written.state():  # noqa: ASYNC110  it is a file
                await anyio.sleep(0.005)
        assert (tmp_path / "hard" / "r1").exists()

    written.run(body)
    assert (tmp_path / "hard" / "r1").exists(), "it stays when the daemon stops"
    assert "enforcement=hard\n" in written.state()


def test_marker_returns_when_allowed_tokens_are_spent(tmp_path: Path) -> None:
    written = Written(tmp_path)

    async def body() -> None:
        await written.until(is_marked=True)
        written.change(allowed_to=BUDGET + 1)
        await written.until(is_marked=False)
        assert "allowed_to=1001\n" in written.state()
        written.change(allowed_to=BUDGET)
        await written.until(is_marked=True)
        written.change(status="done", ended_at=written.now)
        await written.until(is_marked=False)

    written.run(body)
    assert list((tmp_path / "state" / "runs").iterdir()) == []


def test_last_changes_are_written_when_the_daemon_stops(tmp_path: Path) -> None:
    written = Written(tmp_path)

    async def body() -> None:
        await written.until(is_marked=True)
        written.change(token_budget=BUDGET + 1)

    written.run(body)
    assert list((tmp_path / "hard").iterdir()) == []
    assert list((tmp_path / "state" / "runs").iterdir()) == []

    async def lowered() -> None:
        written.change(token_budget=BUDGET + 1)
        await anyio.sleep(0.2)
        written.change(token_budget=BUDGET)

    written.run(lowered)
    assert (tmp_path / "hard" / "r1").exists()
    assert "state=exceeded\n" in written.state()
