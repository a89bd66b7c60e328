"""Claude Code's transcripts: a session's own log, which shows its tokens a second or two after they were used.

The behaviour of these files determines how they are read:

* `<claude>/projects/<project>/<session>.jsonl` is the session's own; its sub-agents' are `agent-*.jsonl`, at any depth
  below `<session>/subagents/` beside it, each with an `agent-*.meta.json` that names the agent;
* lines are appended, so reading resumes at the end of the last complete line. But files may also be truncated,
  rewritten, replaced or deleted: what came from a replaced file is void, and the file is read again;
* one response spans several lines, each with its own usage, partial or complete. A line's usage is a *copy*, and of a
  response's copies the largest counts (`responses`), which may come later than the others, and from another file;
* the format is internal and changes: what cannot be parsed is skipped and counted.

Of the transcripts' content, only counts, names, times and ids leave this package.
"""

from fluxbudgetd.sources.transcripts.names import MAIN, agent_id
from fluxbudgetd.sources.transcripts.responses import merged
from fluxbudgetd.sources.transcripts.source import TranscriptSource

__all__ = ["MAIN", "TranscriptSource", "agent_id", "merged"]
