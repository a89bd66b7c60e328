"""A service inside the test's own process, whose samples of sub-agents the test looks at."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from fluxbudgetd.clock import now_micros
from fluxbudgetd.model import Sample, to_text
from fluxbudgetd.service import Service
from fluxbudgetd.wire import messages
from harness.service import service_over, within
from harness.transcripts import Tokens, Transcript

USED = (100, 50, 1_000, 500)


class World:
    """A service with the run `r`, to which the session `s1` belongs, and its clock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = now_micros()
        self.service: Service

    def clock(self) -> int:
        return self.now

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        async with service_over(self.directory, self.clock) as (service, _):
            self.service = service
            if "r" not in service.accounts.runs:
                request = messages.RunStart(project_dir="/p", id="r", session="s1", whole=True)
                await service.lifecycle.start(request, within(60))
            # The first collection is over.
            await service.samples.collect(within(60))
            yield self

    def writes(
        self,
        agent_id: str,
        agent: str | None = "fd-x",
        *,
        session: str = "s1",
        message: str = "m",
        tokens: Tokens = USED,
        model: str = "opus",
        stop: str | None = "end_turn",
        age: int = 0,
    ) -> None:
        """Write a response of a sub-agent; `age` in microseconds."""
        writer = Transcript(self.directory, session).agent(agent_id)
        if agent is not None:
            writer.meta(None, agentType=agent)
        writer.response(
            f"{agent_id}-{message}", tokens=tokens, model=model, stop=stop, at=to_text(self.now - age),
            request=f"{session}-{agent_id}-{message}",
        )  # fmt: skip

    async def collects(self) -> None:
        """Read the transcripts, and collect."""
        await self.service.totals.refresh_sources(within(60))
        assert await self.service.samples.collect(within(60)) is None

    def of(self, agent: str) -> list[Sample]:
        return list(self.service.samples.of(agent))


def in_world(directory: Path, body: Callable[[World], Awaitable[None]]) -> None:
    """Run a test in a world."""

    async def run() -> None:
        async with World(directory).running() as world:
            await body(world)

    anyio.run(run)


def instances(samples: Iterable[Sample]) -> list[str]:
    """Return which sub-agents samples are of."""
    return sorted(each.instance for each in samples)
