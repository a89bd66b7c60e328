"""Reservations over random histories, and what the daemon keeps of them in memory."""

import random
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.policy import reservations
from fluxbudgetd.service import Service
from fluxbudgetd.wire import messages
from harness.admission import (
    RESEARCH,
    REVIEW,
    write_agent_usage,
)
from harness.daemon import Home, started
from harness.hooks import Claude
from harness.interstat import Interstat
from harness.service import service_over, within
from harness.transcripts import Transcript, timestamp

SEEDS = 3


# --- memory


def watched(service: Service) -> set[str]:
    """Return the sessions whose measured sub-agents are kept in memory."""
    return service.totals.instances.watched


async def launched(service: Service, run: str, session: str) -> str:
    admitted = await service.admission.admit(
        service.accounts.runs[run], session, "fd-quality", REVIEW, None, has_person=False
    )
    return admitted.admission.decision


def test_denied_launches_leave_nothing_in_memory(tmp_path: Path) -> None:
    """Only sessions with reservations are watched, however many launches are denied."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            asked = messages.RunStart(project_dir="/p", id="r", token_budget=REVIEW, enforcement="hard")
            await service.lifecycle.start(asked, within(10))
            assert await launched(service, "r", "s1") == "allow"
            assert await launched(service, "r", "s1") == "deny"
            for session in (f"x{number}" for number in range(20)):
                assert await launched(service, "r", session) == "deny"
                assert watched(service) == {"s1"}
                await service.admission.start(None, session, "fd-quality", "a1", REVIEW)
                await service.admission.stop(session, "fd-quality", "a1")
                await service.admission.end_session(session)
            assert watched(service) == {"s1"}

    anyio.run(body)


def test_old_reservations_leave_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reservations are dropped once their usage can no longer be measured."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            await service.lifecycle.start(messages.RunStart(project_dir="/p", id="r"), within(10))
            monkeypatch.setattr(reservations, "KEPT", 0)  # instead of waiting for an hour
            for session in ("s1", "s2"):
                assert await launched(service, "r", session) == "allow"
            with anyio.fail_after(30):
                while watched(service):  # noqa: ASYNC110  the service has no event for this
                    await anyio.sleep(0.005)
                while await service.ledger.reservations.all():  # noqa: ASYNC110  likewise
                    await anyio.sleep(0.005)

    anyio.run(body)


# --- random histories


class SubAgent:
    """A sub-agent in the model. What is reserved is the sum of `counts`, and nothing else."""

    def __init__(self, session: str, agent: str, agent_id: str, tokens: int) -> None:
        self.session, self.agent, self.agent_id, self.tokens = session, agent, agent_id, tokens
        self.started = self.measured = self.ended = False

    @property
    def counts(self) -> int:
        return 0 if self.measured or self.ended else self.tokens


class History:
    """Sub-agents of two sessions: one has transcripts and ids, the other has only rows, without ids."""

    BUDGET = 300_000
    KINDS = (("fd-quality", REVIEW), ("interflux:fd-quality", REVIEW), ("x-analyst", RESEARCH))

    def __init__(self, home: Home, interstat: Interstat, seed: int) -> None:
        self.home, self.interstat = home, interstat
        self.chance = random.Random(seed)
        self.daemon = home.start()
        self.run = started(home, session="ids", token_budget=self.BUDGET, enforcement="hard")
        home.ok("run", "attach", "--run", self.run, "--session", "rows")
        Transcript(home.root / "claude", "ids").response("m0", tokens=(0, 1, 0, 0), at=timestamp())
        self.agents: list[SubAgent] = []
        self.spent = 1
        self.actions = (
            self.admit, self.admit, self.start, self.start, self.start_again, self.start_unasked, self.measure,
            self.stop, self.stop, self.stop, self.end, self.restart,
        )  # fmt: skip

    @property
    def reserved(self) -> int:
        return sum(one.counts for one in self.agents)

    def living(self, session: str) -> list[SubAgent]:
        return [one for one in self.agents if one.session == session and not one.ended]

    def one(self, session: str, *, is_started: bool) -> SubAgent | None:
        """Return a random living sub-agent of a session, either started or not yet; None if there is none."""
        found = [one for one in self.living(session) if one.started == is_started]
        return self.chance.choice(found) if found else None

    def new(self, session: str, agent: str, tokens: int) -> SubAgent:
        self.agents.append(SubAgent(session, agent, f"a{len(self.agents)}", tokens))
        return self.agents[-1]

    def admit(self) -> None:
        session = self.chance.choice(["ids", "rows"])
        agent, tokens = self.chance.choice(self.KINDS)
        fits = tokens <= self.BUDGET - self.spent - self.reserved
        assert Claude(self.home, session).launch(agent).decision == ("" if fits else "deny")
        if fits:
            self.new(session, agent, tokens)

    def start(self) -> None:
        if one := self.one("ids", is_started=False):
            Claude(self.home, "ids").starts(one.agent_id, one.agent)
            one.started = True

    def start_again(self) -> None:
        if one := self.one("ids", is_started=True):
            Claude(self.home, "ids").starts(one.agent_id, one.agent)

    def start_unasked(self) -> None:
        if self.one("ids", is_started=False) is None:  # otherwise this start would use the admission of that sub-agent
            one = self.new("ids", *self.chance.choice(self.KINDS))
            Claude(self.home, "ids").starts(one.agent_id, one.agent)
            one.started = True

    def measure(self) -> None:
        if one := self.one("ids", is_started=True):
            self.transcribe(one)

    def transcribe(self, one: SubAgent) -> None:
        if not one.measured:
            write_agent_usage(self.home, "ids", one.agent_id, one.agent, tokens=10)
            one.measured = True
            self.spent += 10

    def stop(self) -> None:
        session = self.chance.choice(["ids", "rows"])
        one = self.one(session, is_started=session == "ids")
        if one is None:
            return
        one.ended = True
        if session == "rows":
            Claude(self.home, "rows").stops(None, one.agent)
            self.interstat.insert("rows", one.agent, input_tokens=10, output_tokens=0)
            self.spent += 10
        else:
            Claude(self.home, "ids").stops(one.agent_id, one.agent)
            if self.chance.random() < 0.5:
                self.transcribe(one)

    def end(self) -> None:
        if self.chance.random() < 0.2:
            session = self.chance.choice(["ids", "rows"])
            Claude(self.home, session).call("SessionEnd", reason="other")
            for one in self.living(session):
                one.ended = True

    def restart(self) -> None:
        if self.chance.random() < 0.3:
            self.chance.choice([self.daemon.kill, self.daemon.stop])()
            self.daemon = self.home.start()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_reservations_match_the_model_over_random_histories(home: Home, interstat: Interstat, seed: int) -> None:
    """The reserved tokens are the estimates of all sub-agents that are neither measured nor ended.

    Exactly the launches that fit are admitted. The daemon is stopped and killed in between.
    """
    history = History(home, interstat, seed)
    for step in range(150):
        action = history.chance.choice(history.actions)
        action()
        found = home.spend(history.run)
        assert (found.spent, found.reserved) == (history.spent, history.reserved), (step, action.__name__)
        assert found.remaining == max(0, history.BUDGET - history.spent - history.reserved)
    assert len(history.agents) > 20
