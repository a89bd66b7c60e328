"""File names, and the agents that they belong to."""

import os
from typing import NamedTuple

import msgspec

from fluxbudgetd.sources.transcripts.files import opened
from fluxbudgetd.sources.values import agent_name, text
from fluxbudgetd.wire.text import fold, unfold

#: The agent of a session's own transcript.
MAIN = "main-session"
SUFFIX = ".jsonl"

_AGENT = "agent-"
_META_SUFFIX = ".meta.json"
_META_BYTES = 64 << 10
_NAME_BYTES = 255  # what a file system allows


class _Meta(msgspec.Struct):
    agentType: str | None = None  # noqa: N815  Claude Code's spelling
    toolUseId: str | None = None  # noqa: N815  likewise


class Companion(NamedTuple):
    """What a companion file says: the agent's name, and the id of the tool call that launched it. Empty if unknown."""

    agent: str = ""
    call: str = ""


def session_name(session: str) -> str | None:
    """Return a session's id as a file name, or None if it cannot be one."""
    try:
        raw = unfold(session)
    except UnicodeEncodeError:
        return None
    if raw in (b"", b".", b"..") or b"/" in raw or b"\0" in raw or len(raw) > _NAME_BYTES - len(SUFFIX):
        return None
    return os.fsdecode(raw)


def claude_directory(path: str) -> str | None:
    """Return the Claude directory of a transcript `<directory>/projects/<project>/<session>.jsonl`, or None."""
    above, _, file = path.rpartition("/")
    above, _, project = above.rpartition("/")
    root, _, projects = above.rpartition("/")
    is_plain = root.startswith("/") and not {"", ".", ".."} & {*root.split("/")[1:], project}
    return root if is_plain and projects == "projects" and file.endswith(SUFFIX) else None


def is_sub_agents(name: str) -> bool:
    """Return True if a file of this name is a sub-agent's transcript."""
    return name.startswith(_AGENT) and name.endswith(SUFFIX)


def plain_agent(path: str) -> str:
    """Return the agent's name according to the transcript's file name."""
    return fold(os.fsencode(os.path.basename(path).removesuffix(SUFFIX)))


def agent_id(path: str) -> str | None:
    """Return the id of the sub-agent that a transcript belongs to; None for a session's own."""
    name = os.path.basename(path)
    return fold(os.fsencode(name[len(_AGENT) : -len(SUFFIX)])) if is_sub_agents(name) else None


def companion(path: str) -> str:
    """Return the path of the companion file, which names a transcript's agent."""
    return path.removesuffix(SUFFIX) + _META_SUFFIX


def read_companion(path: str) -> Companion:
    """Return what a companion file says; nothing if the file is missing or broken."""
    try:
        with opened(path) as (fd, _):
            raw = os.read(fd, _META_BYTES + 1)
        if len(raw) > _META_BYTES:
            return Companion()
        meta = msgspec.json.decode(raw, type=_Meta)
    except (OSError, ValueError, RecursionError):
        return Companion()
    return Companion(agent_name(meta.agentType), text(meta.toolUseId))
