"""Reservations over random histories, and what the daemon keeps of them in memory."""

import itertools
import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.decisions.admission import Launch
from fluxbudgetd.policy import reservations
from fluxbudgetd.policy.estimates import plain_name
from fluxbudgetd.service import Service
from fluxbudgetd.wire import messages
from harness.admission import ORACLE, RESEARCH, REVIEW, write_agent_usage
from harness.daemon import Home, started, wait_for
from harness.hooks import Claude
from harness.interstat import Interstat
from harness.service import service_over, within
from harness.transcripts import Transcript, timestamp
from harness.values import an_estimate

SEEDS = 7


# --- memory


def watched(service: Service) -> set[str]:
    """Return the sessions whose measured sub-agents are kept in memory."""
    return service.totals.instances.watched


async def launched(service: Service, run: str, session: str) -> str:
    launch = Launch("fd-quality")
    account = service.accounts.runs[run]
    admitted = await service.admission.admit(account, session, launch, an_estimate(REVIEW), has_person=False)
    return admitted.admission.decision


def test_denied_launches_leave_nothing_in_memory(tmp_path: Path) -> None:
    """Only sessions with reservations are watched, however many launches are denied."""

    async def body() -> None:
        async with service_over(tmp_path) as (service, _):
            asked = messages.RunStart(project_dir="/p", id="r", token_budget=REVIEW, enforcement="hard")
            await service.lifecycle.start(asked, within(60))
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
            await service.lifecycle.start(messages.RunStart(project_dir="/p", id="r"), within(60))
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
    """A launch in the model, from its admission to its end."""

    def __init__(self, session: str, agent: str, tokens: int, call: str | None, parent: "SubAgent | None") -> None:
        self.session, self.agent, self.tokens, self.call, self.parent = session, agent, tokens, call, parent
        self.agent_id: str | None = None
        self.used = 0
        self.is_over = False

    @property
    def is_waiting(self) -> bool:
        return self.agent_id is None and not self.is_over

    @property
    def is_running(self) -> bool:
        return self.agent_id is not None and not self.is_over

    @property
    def holds(self) -> int:
        return 0 if self.is_over else max(0, self.tokens - self.used)


class History:
    """Sub-agents of two sessions: one has transcripts and ids, the other has only rows, without ids.

    What is reserved is the sum of what the launches hold, and nothing else.
    """

    BUDGET = 400_000
    #: Agents and their estimates. A number is added to each name.
    KINDS = (
        ("fd-quality{}", REVIEW), ("interflux:fd-quality{}", REVIEW), ("x{}-analyst", RESEARCH), ("oracle{}", ORACLE),
    )  # fmt: skip

    def __init__(self, home: Home, interstat: Interstat, seed: int) -> None:
        self.home, self.interstat = home, interstat
        self.chance = random.Random(seed)
        self.daemon = home.start()
        self.run = started(home, session="ids", token_budget=self.BUDGET, enforcement="hard")
        home.ok("run", "attach", "--run", self.run, "--session", "rows")
        Transcript(home.root / "claude", "ids").response("m0", tokens=(0, 1, 0, 0), at=timestamp())
        self.claude, self.rows = Claude(home, "ids"), Claude(home, "rows")
        self.agents: list[SubAgent] = []
        #: The call of each sub-agent's first launch, which its transcript names, by its id.
        self.first_calls: dict[str, str | None] = {}
        self.spent = 1
        self.number = 0
        #: How many sub-agents have been launched, by plain name.
        self.launched: Counter[str] = Counter()
        self.actions = (
            self.admit, self.admit, self.admit, self.start, self.start, self.start_unasked, self.work, self.work,
            self.work, self.show_life, self.stop, self.stop, self.fail, self.stop_stranger, self.finish_calls,
            self.submit_prompt, self.end_turn, self.resume, self.end_session, self.restart,
            self.admit_for_rows, self.stop_for_rows,
        )  # fmt: skip

    @property
    def reserved(self) -> int:
        return sum(one.holds for one in self.agents)

    @property
    def open(self) -> tuple[int, int]:
        """Return how many sub-agents have not ended, and how many of these have started."""
        going_on = [one for one in self.agents if not one.is_over]
        return len(going_on), sum(one.agent_id is not None for one in going_on)

    def written(self) -> tuple[int, int]:
        """Return the same according to the ledger."""
        query = "SELECT count(*), count(agent_id) FROM reservations WHERE ended_at IS NULL"
        with closing(sqlite3.connect(f"file:{self.home.state / 'ledger.db'}?mode=ro", uri=True)) as ledger:
            count, started = ledger.execute(query).fetchone()
            return count, started

    @property
    def waiting(self) -> list[SubAgent]:
        return [one for one in self.agents if one.session == "ids" and one.is_waiting]

    @property
    def running(self) -> list[SubAgent]:
        return [one for one in self.agents if one.session == "ids" and one.is_running]

    def any_of(self, agents: list[SubAgent]) -> SubAgent | None:
        return self.chance.choice(agents) if agents else None

    def new_name(self, prefix: str) -> str:
        self.number += 1
        return f"{prefix}{self.number}"

    def add(self, session: str, kind: tuple[str, int], call: str | None, parent: SubAgent | None = None) -> SubAgent:
        self.launched[plain_name(kind[0])] += 1
        self.agents.append(SubAgent(session, *kind, call, parent))
        return self.agents[-1]

    def any_kind(self) -> tuple[str, int]:
        """Return an agent and its estimate. Only two of each name are launched: three would change the estimate."""
        template, tokens = self.chance.choice(self.KINDS)
        names = (template.format(number) for number in itertools.count())
        return next(name for name in names if self.launched[plain_name(name)] < 2), tokens

    def requires(self, tokens: int) -> str:
        """Return the decision about a launch of this estimate."""
        return "" if tokens <= self.BUDGET - self.spent - self.reserved else "deny"

    # What Claude Code does

    def admit(self) -> None:
        """Launch a sub-agent, from the main loop or from another sub-agent. The hook may be called twice."""
        kind, call = self.any_kind(), self.new_name("t")
        parent = self.any_of(self.running) if self.chance.random() < 0.3 else None
        expected = self.requires(kind[1])
        for _ in range(1 if expected else self.chance.choice([1, 2])):
            inside = None if parent is None else parent.agent_id
            assert self.claude.launch(kind[0], call=call, parent=inside).decision == expected
        if not expected:
            self.add("ids", kind, call, parent)

    def start(self) -> None:
        """Start a launch under one of its names. Its transcript, which names its call, comes afterwards."""
        if one := self.any_of(self.waiting):
            self.begin(one, self.new_name("a"), self.name_of(one))

    def name_of(self, one: SubAgent) -> str:
        """Return one of the names under which Claude Code may report a sub-agent."""
        return self.chance.choice([one.agent, one.agent.upper(), f"plugin:{one.agent}", "general-purpose"])

    def begin(self, one: SubAgent, agent_id: str, name: str) -> None:
        one.agent_id = agent_id
        for _ in range(self.chance.choice([1, 2])):
            self.claude.starts(agent_id, name)
        self.first_calls.setdefault(agent_id, one.call)
        self.write(one, 0)

    def start_unasked(self) -> None:
        """Start a sub-agent that no hook was asked about, such as a workflow's."""
        if not self.waiting:  # otherwise this start would take the reservation of another launch
            one = self.add("ids", self.any_kind(), None)
            self.begin(one, self.new_name("a"), one.agent)  # its estimate is that of the name

    def work(self) -> None:
        if one := self.any_of(self.running):
            self.write(one, self.chance.choice([10, 300, 4_000, 9_000]))

    def write(self, one: SubAgent, tokens: int) -> None:
        assert one.agent_id is not None
        call, message = self.first_calls[one.agent_id], self.new_name("-")
        write_agent_usage(self.home, "ids", one.agent_id, one.agent, tokens=tokens, call=call, message=message)
        one.used += tokens
        self.spent += tokens

    def show_life(self) -> None:
        if one := self.any_of(self.running):
            self.claude.batch(self.new_name("bash"), agent_id=one.agent_id, agent=one.agent)

    def stop(self) -> None:
        if one := self.any_of(self.running):
            self.end(one)
            for _ in range(self.chance.choice([1, 2])):
                self.claude.stops(one.agent_id, self.name_of(one))

    def fail(self) -> None:
        if one := self.any_of(self.running):
            self.end(one)
            self.claude.fails(one.agent_id, one.agent)

    def end(self, ended: SubAgent) -> None:
        """End a sub-agent, with what it has launched that has not started."""
        ended.is_over = True
        for one in self.waiting:
            one.is_over = one.parent is ended

    def stop_stranger(self) -> None:
        self.claude.stops(self.new_name("internal-"), "")

    def finish_calls(self) -> None:
        """Report results. Launches that have not started never will; those that run do so in the background."""
        listed = self.chance.sample(self.agents, min(2, len(self.agents)))
        for one in listed:
            one.is_over = one.is_over or (one.is_waiting and one.call is not None)
        self.claude.batch(*(one.call for one in listed if one.call is not None), "bash")

    def submit_prompt(self) -> None:
        for one in self.waiting:
            one.is_over = one.parent is None
        self.claude.call("UserPromptSubmit", prompt="Go on.")

    def end_turn(self) -> None:
        """End the turn while some of what runs goes on, with what that has launched."""
        running = [one for one in self.running if one.call is not None]
        goes_on = [one for one in running if self.chance.random() < 0.7]
        for one in [*self.running, *self.waiting]:
            ancestor: SubAgent | None = one
            while ancestor is not None and ancestor not in goes_on and not (ancestor.call is None and goes_on):
                ancestor = ancestor.parent if ancestor.parent is None or ancestor.parent.is_running else None
            one.is_over = ancestor is None
        self.claude.ends_turn(*(str(one.agent_id) for one in goes_on))

    def resume(self) -> None:
        """Send a message to a sub-agent that has ended."""
        ids = {one.agent_id for one in self.running}
        one = self.any_of([one for one in self.agents if one.session == "ids" and one.agent_id and one.is_over])
        if one is None or one.agent_id is None or one.agent_id in ids:
            return
        call, expected = self.new_name("t"), self.requires(one.tokens)
        assert self.claude.message(one.agent_id, call=call).decision == expected
        if not expected:
            resumed = self.add("ids", (one.agent, one.tokens), call)
            self.begin(resumed, one.agent_id, self.name_of(resumed))

    def end_session(self) -> None:
        if self.chance.random() < 0.2:
            session = self.chance.choice([self.claude, self.rows])
            session.call("SessionEnd", reason="other")
            for one in self.agents:
                one.is_over = one.is_over or one.session == session.session

    def restart(self) -> None:
        if self.chance.random() < 0.3:
            # An answer waits only briefly for its reservation to be written. On a busy machine, a kill may come first.
            wait_for(lambda: self.written() == self.open, "the reservations to be written")
            self.chance.choice([self.daemon.kill, self.daemon.stop])()
            self.daemon = self.home.start()

    def admit_for_rows(self) -> None:
        kind = self.any_kind()
        expected = self.requires(kind[1])
        assert self.rows.launch(kind[0]).decision == expected
        if not expected:
            self.add("rows", kind, None)

    def stop_for_rows(self) -> None:
        one = self.any_of([one for one in self.agents if one.session == "rows" and not one.is_over])
        if one is not None:
            one.is_over = True
            self.rows.stops(None, one.agent)
            self.interstat.insert("rows", one.agent, input_tokens=10, output_tokens=0)
            self.spent += 10


@pytest.mark.parametrize("seed", range(SEEDS))
def test_reservations_match_the_model_over_random_histories(home: Home, interstat: Interstat, seed: int) -> None:
    """The reserved tokens are what all launches hold that have not ended: the estimate, less what was used.

    Exactly the launches that fit are admitted. The daemon is stopped and killed in between.
    """
    history = History(home, interstat, seed)
    log = []
    for _ in range(150):
        action = history.chance.choice(history.actions)
        log.append(action.__name__)
        action()
        found = home.spend(history.run)
        assert (found.spent, found.reserved) == (history.spent, history.reserved), " ".join(log[-12:])
        assert found.remaining == max(0, history.BUDGET - history.spent - history.reserved)
    assert len(history.agents) > 20
