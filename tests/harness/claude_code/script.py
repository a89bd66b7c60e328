"""Scripted conversations: what the stand-in for the API answers, and the usage that it reports.

The prompt `Play NAME` makes the model speak the turns of the conversation NAME, one per request. Nothing has to be
remembered between requests, because each contains the whole conversation so far: the assistant's messages after the
prompt say which turn is next. So sub-agents, forks, resumed sessions and retries all find their place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Block = dict[str, Any]

#: The agent of a session's own responses, as distinct from those of its sub-agents.
MAIN = "main-session"

#: The recipient that stands for the sub-agent that was named last in the conversation.
LAST = "last"

# (Claude Code writes "Your directive: " before the prompt of a sub-agent of the type `fork`.)
_PLAY = re.compile(r"^\s*(?:Your directive: )?Play ([a-z-]+)\s*$", re.MULTILINE)
# This text reports a background task, and may quote the task's prompt.
_NOTIFICATION = "<task-notification>"


@dataclass(frozen=True)
class Usage:
    """Tokens that the API reports for a response, or for one of the iterations that its top level omits."""

    input: int
    output: int
    cache_read: int = 0
    cache_5m: int = 0
    cache_1h: int = 0

    @property
    def billing(self) -> int:
        return self.input + self.output

    @property
    def total(self) -> int:
        return self.billing + self.cache_read + self.cache_5m + self.cache_1h

    def as_json(self) -> dict[str, Any]:
        """Return it as the API writes it."""
        return {
            "input_tokens": self.input,
            "output_tokens": self.output,
            "cache_read_input_tokens": self.cache_read,
            "cache_creation_input_tokens": self.cache_5m + self.cache_1h,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.cache_5m,
                "ephemeral_1h_input_tokens": self.cache_1h,
            },
        }


@dataclass(frozen=True)
class Iteration:
    """A part of a response that is billed beside its top level: an advisor's answer or a compaction."""

    kind: str
    usage: Usage
    model: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as the API writes it."""
        return {"type": self.kind, **({"model": self.model} if self.model else {}), **self.usage.as_json()}


@dataclass(frozen=True)
class Turn:
    """One response of the model. Without a usage of its own, it gets numbers that no other response has."""

    blocks: tuple[Block, ...]
    usage: Usage | None = None
    iterations: tuple[Iteration, ...] = ()
    #: The first requests for this turn fail with these HTTP status codes.
    fails: tuple[int, ...] = ()
    #: If set, the first response ends, unfinished, after so many events.
    breaks_after: int | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns that the model speaks after a prompt. `agent` is the type of the sub-agent that the prompt starts."""

    turns: tuple[Turn, ...]
    agent: str = MAIN


@dataclass(frozen=True)
class Place:
    """Where a request stands in a conversation."""

    name: str
    turn: int


@dataclass
class Script:
    """All conversations of a test."""

    conversations: dict[str, Conversation] = field(default_factory=dict)

    def add(self, name: str, *turns: Turn, agent: str = MAIN) -> str:
        """Add a conversation; return the prompt that starts it."""
        self.conversations[name] = Conversation(turns, agent)
        return f"Play {name}"

    def turn(self, place: Place) -> Turn:
        """Return the turn at a place. A conversation that is over goes on with short answers."""
        turns = self.conversations[place.name].turns
        return turns[place.turn] if place.turn < len(turns) else Turn((text("That was all."),))


def place_in(messages: list[Mapping[str, Any]]) -> Place | None:
    """Return the place that a request's messages lead to, or None if no conversation was asked for."""
    turn = 0
    for message in reversed(messages):
        if message["role"] == "assistant":
            turn += 1
        elif found := [name for block in _texts(message["content"]) for name in _PLAY.findall(block)]:
            return Place(found[-1], turn)
    return None


def _texts(content: str | list[Mapping[str, Any]]) -> list[str]:
    blocks = [content] if isinstance(content, str) else [block["text"] for block in content if block["type"] == "text"]
    return [block for block in blocks if _NOTIFICATION not in block]


def text(words: str) -> Block:
    """Return a block of text."""
    return {"type": "text", "text": words}


def thinking(words: str) -> Block:
    """Return a block of thinking."""
    return {"type": "thinking", "thinking": words, "signature": "bm9uZQ=="}


def tool(name: str, **arguments: Any) -> Block:
    """Return a call of a tool."""
    return {"type": "tool_use", "name": name, "input": arguments}


def bash(command: str) -> Block:
    """Return a call of Bash."""
    return tool("Bash", command=command, description="Runs a command")


def agent(prompt: str, *, kind: str = "general-purpose", background: bool = False) -> Block:
    """Return a call that starts a sub-agent."""
    return tool("Agent", description="Helps", prompt=prompt, subagent_type=kind, run_in_background=background)


def message(prompt: str) -> Block:
    """Return a message to the sub-agent that was named last in the conversation."""
    return tool("SendMessage", to=LAST, summary="More work", message=prompt)


def says(words: str, *calls: Block, **fields: Any) -> Turn:
    """Return a turn that says something and then calls tools."""
    return Turn((text(words), *calls), **fields)


def spends(tokens: int, *calls: Block, left: int = 50_000) -> Turn:
    """Return a turn that uses this many tokens. Before any further calls it waits until less than `left` remains.

    (Claude Code writes a response to the transcript while its tools run.)
    """
    wait = bash(f'until [ "$(fluxbudgetctl remaining)" -lt {left} ]; do sleep 0.02; done')
    return says("Spends.", wait, *calls, usage=Usage(input=tokens - 1_000, output=1_000))
