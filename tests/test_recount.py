"""Random writers, attachments and runs against the slow, obvious recount, through the real daemon."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fluxbudgetd.wire import messages
from harness.daemon import Home, Wire
from harness.interstat import Interstat
from harness.recount import Left, Recount, StartedRun

SESSIONS = ("s0", "s1", "s'2")
SCOPES = ("b0", 'b"1')
ODD = (None, 0, 7, 1000, 123_456_789, -5, "text", 2.5, b"\x00")

session = st.sampled_from(SESSIONS)
tokens = st.sampled_from(ODD)
# Now, long ago (before every run and attachment), or not a time.
when = st.sampled_from(("now", "now", "now", "past", "garbage"))
bead = st.sampled_from((*SCOPES, "", "", None, "unknown"))
phase = st.sampled_from(("", "", None, "brainstorm", "planned", "no phase of ours"))
write = st.tuples(st.just("write"), session, when, bead, phase, tokens, tokens, tokens, tokens)
update = st.tuples(st.just("update"), st.integers(0, 30), tokens, tokens)
delete = st.tuples(st.just("delete"), st.integers(0, 30))
start = st.tuples(st.just("start"), st.sampled_from((*SCOPES, None)), st.sampled_from((None, *SESSIONS)))
attach = st.tuples(st.just("attach"), session, st.integers(0, 5), st.sampled_from((False, False, True)))
detach = st.tuples(st.just("detach"), session)
finish = st.tuples(st.just("finish"), st.integers(0, 5))
advance = st.tuples(st.just("advance"), st.integers(0, 5))
compare = st.tuples(st.just("compare"))
actions = st.lists(
    st.one_of(write, write, write, update, delete, start, attach, detach, finish, advance, compare),
    min_size=20,
    max_size=80,
)


class History:
    """Applies actions to the daemon and to the recount. Names are unique to each history."""

    def __init__(self, wire: Wire, interstat: Interstat, number: int) -> None:
        self.wire = wire
        self.interstat = interstat
        self.mark = f"/{number}"
        self.recount = Recount(interstat.path)
        self.rows: list[int] = []
        self.active: dict[str | None, str] = {}

    def ask(self, request: messages.AnyRequest) -> Any:
        return self.wire.ask(request)

    def write(self, name: str, when: str, bead: str | None, phase: str | None, *tokens: Any) -> None:
        moments = {
            "now": datetime.now(UTC).isoformat(),
            "past": (datetime.now(UTC) - timedelta(days=400)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "garbage": "no time",
        }
        columns = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
        self.rows.append(
            self.interstat.insert(
                name + self.mark,
                timestamp=moments[when],
                bead_id=bead + self.mark if bead else bead,
                phase=phase,
                **dict(zip(columns, tokens, strict=True)),
            )
        )

    def update(self, index: int, first: Any, second: Any) -> None:
        if self.rows:
            self.interstat.update(self.rows[index % len(self.rows)], input_tokens=first, output_tokens=second)

    def delete(self, index: int) -> None:
        if self.rows:
            row = self.rows.pop(index % len(self.rows))
            self.interstat.connection.execute("DELETE FROM agent_runs WHERE id = ?", (row,))

    def start(self, scope: str | None, name: str | None) -> None:
        if scope is not None and scope in self.active:
            return
        own_scope = None if scope is None else scope + self.mark
        session = None if name is None else name + self.mark
        before = len(self.recount.runs)
        if session is not None:
            # Attach before the new run is added, so that the session's earlier rows can only imply an older run.
            answer = self.ask(messages.RunStart(scope=own_scope, session=session, project_dir="/", token_budget="none"))
            at = datetime.fromisoformat(answer.run.started_at).timestamp()
            self.recount.attach(session, answer.run.id, time.time(), at)
        else:
            answer = self.ask(messages.RunStart(scope=own_scope, project_dir="/", token_budget="none"))
            at = datetime.fromisoformat(answer.run.started_at).timestamp()
        self.recount.runs.insert(before, StartedRun(answer.run.id, own_scope, at))
        self.recount.left[answer.run.id] = []
        self.recount.chains[answer.run.id] = answer.run.phases
        self.active[scope if scope is not None else answer.run.id] = answer.run.id

    def attach(self, name: str, index: int, whole: bool = False) -> None:
        if self.active:
            run = list(self.active.values())[index % len(self.active)]
            current = self.current(name)
            known = [one for one in self.recount.attachments if one.session == name + self.mark]
            is_wider = whole and bool(known) and not known[-1].whole and known[-1].at is not None
            answer = self.ask(messages.RunAttach(attach=name + self.mark, run=run, whole=whole))
            assert answer.changed == (current != run or is_wider), answer
            assert answer.moved_from == (None if current == run else current), answer
            if current != run:
                at = next(one.at for one in self.recount.runs if one.name == run)
                self.recount.attach(name + self.mark, run, time.time(), at, whole=whole)
            elif answer.changed:
                self.recount.widen(name + self.mark)

    def detach(self, name: str) -> None:
        current = self.current(name)
        answer = self.ask(messages.RunDetach(detach=name + self.mark))
        assert isinstance(answer, messages.RunAnswer) == (current is not None), answer
        if current is not None:
            self.recount.attach(name + self.mark, None, time.time(), 0)

    def current(self, name: str) -> str | None:
        known = [one for one in self.recount.attachments if one.session == name + self.mark]
        return known[-1].run if known else self.recount.implied(name + self.mark)

    def advance(self, index: int) -> None:
        if self.active:
            run = list(self.active.values())[index % len(self.active)]
            left = self.recount.left[run]
            chain = self.recount.chains[run]
            here = chain[len(left)]
            answer = self.ask(messages.Advance(run=run, from_phase=here, wait_ms=30_000))
            assert isinstance(answer, messages.AdvanceAnswer) == (here != chain[-1]), answer
            if isinstance(answer, messages.AdvanceAnswer):
                assert answer.completed is not None
                assert answer.completed.until is not None
                until = datetime.fromisoformat(answer.completed.until).timestamp()
                left.append(Left(here, until, answer.completed.estimate))

    def finish(self, index: int) -> None:
        if self.active:
            key = list(self.active)[index % len(self.active)]
            self.ask(messages.RunFinish(run=self.active.pop(key)))

    def compare(self) -> None:
        expected = self.recount.totals()
        for run in self.recount.runs:
            shown = self.ask(messages.RunShow(run=run.name, wait_ms=30_000))
            assert not shown.spend.stale, shown.spend
            assert (shown.totals.billing, shown.totals.total) == expected[run.name], run
            by_phase = {line.name: (line.billing, line.provisional) for line in shown.by_phase}
            assert by_phase == self.recount.phases(run.name)
            assert shown.spend.provisional == sum(counting for _, counting in by_phase.values())
            assert shown.spend.spent == shown.totals.billing + shown.spend.provisional


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Interstat, Iterator[int]]]:
    home = Home(tmp_path_factory.mktemp("recount"))
    interstat = Interstat(home.interstat)
    interstat.connection.execute("PRAGMA synchronous=OFF")
    home.start()
    yield home, interstat, count()
    interstat.close()
    home.stop_all()


@pytest.mark.soak
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions)
@example(
    # The oldest row of the session is older than the run, and the session joins when the first phase has ended.
    actions=[
        ("start", "b0", None),
        ("advance", 0),
        ("attach", "s0", 0, False),
        ("write", "s0", "now", "b0", "", None, None, None, 7),
        ("write", "s0", "past", "b0", "", None, None, None, None),
    ]
)
def test_totals_equal_the_recount(world: tuple[Home, Interstat, Iterator[int]], actions: list[tuple[Any, ...]]) -> None:
    """Each run has exactly the tokens that the rules give it, at random moments and at the end."""
    home, interstat, numbers = world
    with Wire(home.socket) as wire:
        history = History(wire, interstat, next(numbers))
        for name, *arguments in actions:
            getattr(history, name)(*arguments)
        history.compare()
        # A small table is recounted quickly.
        interstat.connection.execute("DELETE FROM agent_runs")


def test_recount_after_a_restart(tmp_path: Path) -> None:
    """It comes after kill -9. Sessions were attached by hand and by a bead, moved and detached; one run is finished."""
    home = Home(tmp_path)
    interstat = Interstat(home.interstat)
    daemon = home.start()
    with Wire(home.socket) as wire:
        history = History(wire, interstat, 0)
        history.start("b0", "s0")
        history.start("b1", None)
        history.write("s0", "now", None, None, 1, 2, 3, 4)
        history.write("s1", "now", "b1", "planned", 10, 20, 30, 40)
        history.write("s1", "past", None, "", 100, 200, 300, 400)
        history.attach("s1", 0)
        history.advance(0)
        history.write("s1", "now", None, None, 1000, 2000, 3000, 4000)
        history.detach("s0")
        history.write("s0", "now", None, None, 7, 7, 7, 7)
        history.finish(0)
        history.compare()
    daemon.kill()
    home.start()
    with Wire(home.socket) as wire:
        history.wire = wire
        history.compare()
    interstat.close()
    home.stop_all()
