"""Runs that intercore keeps, in the service inside the test: adopted, followed, linked, withheld."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.model import Event, Run
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from harness.intercore import DEFAULT_CHAIN, IcProject
from harness.interstat import Interstat
from harness.service import service_over, within

HOUR_AGO = int(time.time()) - 3600


class World:
    """A service, and a project that intercore keeps."""

    def __init__(self, service: Service, project: IcProject) -> None:
        self.service = service
        self.project = project

    async def look(self, directory: Path | None = None) -> None:
        """Have the project's database read as a request does, until nothing is due."""
        directory = directory or self.project.root
        with anyio.fail_after(60):
            while True:
                await self.service.adoption.look(str(directory), None, within(60))
                reports = {report.path: report for report in self.service.adoption.databases}
                report = reports.get(str(directory / ".clavain" / "intercore.db"))
                if report is not None and report.status.state != "unread" and self.is_settled(report.path):
                    return
                await anyio.sleep(0.01)

    def is_settled(self, path: str) -> bool:
        return self.service.adoption.is_current(path)

    def run(self, run: str) -> Run:
        return self.account(run).run

    def account(self, run: str) -> RunAccount:
        return self.service.accounts.runs[run]

    async def events(self, run: str, kind: str | None = None) -> list[Event]:
        events = await self.service.ledger.events.after(0, 1000)
        return [event for event in events if event.run == run and kind in (None, event.kind)]


@asynccontextmanager
async def world_in(root: Path, version: int = 39) -> AsyncIterator[World]:
    interstat = Interstat(root / "metrics.db")
    try:
        async with service_over(root) as (service, _):
            yield World(service, IcProject(root / "project", version))
    finally:
        interstat.close()


def check(root: Path, body: Callable[[World], Awaitable[None]], version: int = 39) -> None:
    """Run a test's body with a world."""

    async def main() -> None:
        async with world_in(root, version) as world:
            await body(world)

    anyio.run(main)


@pytest.mark.parametrize("version", [6, 20, 26, 39])
def test_active_run_is_adopted_as_its_row_says(tmp_path: Path, version: int) -> None:
    """Its id, scope, budget, warning percentage, chain and start are intercore's; the cost basis is billing."""

    async def body(world: World) -> None:
        run = world.project.run_create("goal", scope="b-1", budget=1000, warn_pct=70, complexity=9, at=HOUR_AGO)
        await world.look()
        found = world.run(run)
        assert (found.id, found.scope, found.goal, found.token_budget, found.warn_pct) == (run, "b-1", "goal", 1000, 70)
        assert (found.complexity, found.phases, found.phase) == (5, DEFAULT_CHAIN, "brainstorm")
        assert (found.started_at, found.status, found.enforcement) == (HOUR_AGO * 1_000_000, "active", "soft")
        assert (found.project_dir, found.cost_basis) == (str(world.project.root), "billing")
        assert found.adopted is not None
        assert (found.adopted.database, found.adopted.run_id) == (str(world.project.database), run)
        (event,) = await world.events(run, "run.started")
        assert event.data["adopted_from"] == str(world.project.database)

    check(tmp_path, body, version)
