"""Requests of Clavain's shell functions besides a run's budget: agents' tokens, and configured numbers."""

from typing import Literal

import msgspec

from fluxbudgetd.wire.messages.base import Answer, Hints, Request
from fluxbudgetd.wire.messages.spend import EstimateSource


class Tokens(Request, frozen=True, kw_only=True, tag="tokens"):
    """Return what a session's agents have used or, without a session, what an agent costs on average."""

    session: str | None = None
    agent: str | None = None
    """Only this agent, with or without the plugin's prefix; required without a session."""
    model: str | None = None
    """Without a session: use the rows of this model and those without a model; `claude-opus-4-6` if omitted."""


class Defaults(Request, frozen=True, kw_only=True, tag="defaults"):
    """Return the budget for a complexity or, if a phase is given, what that phase is expected to cost."""

    complexity: int | None = None
    """Outside of 1 to 5: counts as 5; if omitted: the complexity of new runs."""
    phase: str | None = None
    hints: Hints = Hints()
    """They name the project whose calibration applies: the project of their run, or else the working directory."""


class AgentTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The measured usage of an agent in a session."""

    agent_name: str
    billing_tokens: int
    """Input + output."""
    total_tokens: int
    """All kinds of tokens."""
    cache_read: int


class AgentMean(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent has cost on average."""

    agent_name: str
    est_tokens: int
    """All kinds of tokens."""
    est_billing: int
    sample_size: int
    source: Literal["interstat"] = "interstat"


class TokensAnswer(Answer, frozen=True, kw_only=True, tag="tokens"):
    """The agents of the session that have measured usage, or the agent's mean if it is based on at least three rows."""

    used: tuple[AgentTokens, ...] = ()
    mean: AgentMean | None = None
    stale_why: str | None = None


class DefaultsAnswer(Answer, frozen=True, kw_only=True, tag="defaults"):
    """A number of tokens, and where it comes from."""

    tokens: int
    source: EstimateSource | Literal["configuration"]
    """`configuration`: the budget of a complexity; otherwise as in a run's phases."""
    sample_size: int = 0
    """The number of runs that a calibrated estimate is the mean of."""
