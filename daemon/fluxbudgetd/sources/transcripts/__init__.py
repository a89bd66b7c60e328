"""Claude Code's transcripts: a session's own log, which shows its tokens a second or two after they were used.

The behaviour of these files determines how they are read:

* `<claude>/projects/<project>/<session>.jsonl` is the session's own; its sub-agents' are `agent-*.jsonl`, at any depth
  below `<session>/subagents/` beside it, each with an `agent-*.meta.json` that names the agent;
* lines are appended, so reading resumes at the end of the last complete line. But files may also be truncated,
  rewritten, replaced or deleted. What was read stays, and the file that is now at the path is read from its start;
* one response spans several lines, each with its own usage, partial or complete. A line's usage is a *copy*. The copy
  that counts may come later than the others, and from another file;
* lines may be damaged (`salvage`). The format is internal and changes: lines whose usage cannot be read are counted.

Of the transcripts' content, only counts, names, times and ids leave this package.
"""

from fluxbudgetd.sources.transcripts.names import MAIN, agent_id, claude_directory, plain_agent
from fluxbudgetd.sources.transcripts.places import Problem
from fluxbudgetd.sources.transcripts.source import TranscriptSource

__all__ = ["MAIN", "Problem", "TranscriptSource", "agent_id", "claude_directory", "plain_agent"]
