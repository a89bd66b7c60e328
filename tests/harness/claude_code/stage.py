"""A run with real sessions, whose totals must equal what the API handed out."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from fluxbudgetd.wire.messages import RunShowAnswer, Tally
from harness.claude_code.api import Kind, MessagesApi, Response
from harness.claude_code.script import Usage
from harness.claude_code.sessions import ClaudeCode, Session
from harness.daemon import Daemon, Home, started, wait_for
from harness.events import committed_events


class Tokens(NamedTuple):
    """A sum of usage."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_creation: int = 0

    def plus(self, usage: Usage) -> "Tokens":
        """Return this sum with one more usage."""
        return Tokens(
            self.input + usage.input,
            self.output + usage.output,
            self.cache_read + usage.cache_read,
            self.cache_creation + usage.cache_5m + usage.cache_1h,
        )

    @property
    def billing(self) -> int:
        return self.input + self.output

    @property
    def total(self) -> int:
        return sum(self)


class Totals(NamedTuple):
    """The usage of a run."""

    all: Tokens
    by_agent: dict[str, Tokens]
    by_model: dict[str, Tokens]
    by_session: dict[str, Tokens]


def handed_out(responses: Iterable[Response]) -> Totals:
    """Return what responses amount to."""
    everything = Tokens()
    sums: list[dict[str, Tokens]] = [defaultdict(Tokens) for _ in range(3)]
    for response in responses:
        parts = [(response.model, response.usage)]
        parts += [(part.model or response.model, part.usage) for part in response.iterations]
        for model, usage in parts:
            everything = everything.plus(usage)
            for of, name in zip(sums, (response.agent, model, response.session), strict=True):
                of[name] = of[name].plus(usage)
    return Totals(everything, *map(dict, sums))


def counted(run: RunShowAnswer) -> Totals:
    """Return what the daemon counts for a run, without sums of nothing. Its figures must agree with each other."""

    def tokens(tally: Tally) -> Tokens:
        found = Tokens(tally.input, tally.output, tally.cache_read, tally.cache_creation)
        assert (tally.billing, tally.total) == (found.billing, found.total), tally
        return found

    def by_name(tallies: Iterable[Tally]) -> dict[str, Tokens]:
        return {tally.name: found for tally in tallies if any(found := tokens(tally))}

    assert not run.spend.stale, run.spend
    return Totals(tokens(run.totals), *map(by_name, (run.by_agent, run.by_model, run.by_session)))


class Stage:
    """A run in a home with a daemon, and sessions of Claude Code in the run's directory."""

    def __init__(self, home: Home, daemon: Daemon, claude: ClaudeCode, api: MessagesApi) -> None:
        self.home = home
        self.daemon = daemon
        self.claude = claude
        self.api = api
        self.script = api.script
        self._first = 0
        self.run = started(home, token_budget=10_000_000)

    def next_run(self, **fields: Any) -> None:
        """Finish the run, and start another one, which later responses belong to."""
        self.home.ok("run", "finish", "--run", self.run)
        self._first = len(self.api.responses)
        self.run = started(self.home, **{"token_budget": 10_000_000, **fields})

    def play(self, prompt: str, *flags: str, unwritten: Collection[Kind] = (), fails: bool = False) -> Session:
        """Run a session. Meanwhile the run's total is at most what was handed out; at its end they are equal.

        `unwritten` names the kinds of responses that Claude Code writes to no transcript. The session must have some.
        """
        session = self.claude.run(prompt, *flags, meanwhile=self._require_no_more)
        assert (session.code != 0) == fails, (session.code, session.errors, session.events[-1:])
        self.require_equal(unwritten)
        spend = self.home.spend(self.run)
        assert (spend.spent, spend.reserved) == (handed_out(self._turns()).all.billing, 0), spend
        return session

    def require_equal(self, unwritten: Collection[Kind] = ()) -> None:
        """Require that the run's totals equal what was handed out, but for exactly these kinds of responses."""
        # (pytest explains only the assertions of test modules.)
        kinds = {response.kind for response in self._responses()} - {"turn"}
        assert kinds == set(unwritten), kinds
        self._require_turns()

    def wait_for_turn(self, number: int) -> None:
        """Wait until this many turns of the run were handed out, and then until they are counted, once each."""
        wait_for(lambda: len(self._turns()) == number, f"turn {number}")
        wanted = handed_out(self._turns()).all.total
        wait_for(lambda: self.totals().all.total >= wanted, f"turn {number} to be counted")
        self._require_turns()

    @property
    def speakers(self) -> list[str]:
        """Return the types of the agents that took the turns since the run began, in order."""
        return [response.agent for response in self._turns()]

    def heard(self, words: str, by: str | None = None) -> list[int]:
        """Return how often each request since the run began contains these words. `by`: of this type of agent only.

        A request contains the whole conversation so far.
        """
        asked = [response for response in self._responses() if by in (None, response.agent)]
        return [json.dumps(response.request["messages"]).count(words) for response in asked]

    @property
    def events(self) -> list[str]:
        """Return the kinds of the run's events, in order."""
        return [kind for _seq, kind, run in committed_events(self.home) if run == self.run]

    def _responses(self) -> list[Response]:
        """Return what was handed out since the run began."""
        return self.api.responses[self._first :]

    def _turns(self) -> list[Response]:
        """Return the responses that Claude Code writes to transcripts."""
        return [response for response in self._responses() if response.kind == "turn"]

    def _require_turns(self) -> None:
        found, wanted = self.totals(), handed_out(self._turns())
        assert found == wanted, f"counted: {found}\nhanded out: {wanted}"

    def totals(self, run: str | None = None) -> Totals:
        """Return what the daemon counts for a run; by default for the current one."""
        return counted(self.home.details(run or self.run))

    def _require_no_more(self) -> None:
        found = self.home.details(self.run).totals
        most = handed_out(self._responses()).all
        assert found.billing <= most.billing, (found, most)
        assert found.total <= most.total, (found, most)


__all__ = ["Stage", "Tokens", "Totals", "counted", "handed_out"]
