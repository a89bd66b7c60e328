"""Claude Code's transcripts: a session's own log, which shows its tokens a second or two after they were used.

How the files behave decides how they are read:

* `<claude>/projects/<project>/<session>.jsonl` is the session's own; `agent-*.jsonl` at any depth below
  `<session>/subagents/` beside it are its sub-agents', and `agent-*.meta.json` says which agent that was;
* they grow by lines, so reading resumes at the end of the last complete line. But they may also be cut, rewritten,
  replaced or deleted: what came from a file that has been replaced is void, and is read again;
* one response spans several lines, each with a usage of its own, partial or whole: a line gives a *copy*, and of a
  response's copies the largest counts (`responses`), which may come later than the others, and from another file;
* the format is internal and changes: what cannot be parsed is skipped and counted.

Only counts, names, times and ids leave this package.
"""

from fluxbudgetd.sources.transcripts.names import MAIN, agent_id
from fluxbudgetd.sources.transcripts.responses import merged
from fluxbudgetd.sources.transcripts.source import TranscriptSource

__all__ = ["MAIN", "TranscriptSource", "agent_id", "merged"]
