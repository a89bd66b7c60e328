"""A service inside the test, and a project with an intercore database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from fluxbudgetd.model import Adoption, Event, Run
from fluxbudgetd.service import Service
from fluxbudgetd.totals.account import RunAccount
from harness.intercore import IcProject
from harness.interstat import Interstat
from harness.service import service_over, within


class World:
    """A service, and a project with an intercore database."""

    def __init__(self, service: Service, project: IcProject) -> None:
        self.service = service
        self.project = project

    async def refresh(self, directory: Path | None = None) -> None:
        """Read the project's database as a request does, until nothing is due."""
        directory = directory or self.project.root
        with anyio.fail_after(60):
            while True:
                await self.service.adoption.refresh(str(directory), None, within(60))
                reports = {report.path: report for report in self.service.adoption.databases}
                report = reports.get(str(directory / ".clavain" / "intercore.db"))
                if report is not None and report.status.state != "unread" and self.is_settled(report.path):
                    return
                await anyio.sleep(0.01)

    def is_settled(self, path: str) -> bool:
        return self.service.adoption.is_current(path)

    def run(self, run: str) -> Run:
        return self.account(run).run

    def adoption(self, run: str) -> Adoption:
        adopted = self.run(run).adopted
        assert adopted is not None
        return adopted

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
