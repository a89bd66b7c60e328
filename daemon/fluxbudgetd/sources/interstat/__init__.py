"""The interstat plugin's database, `metrics.db`: one row per sub-agent and session, in the table `agent_runs`.

The behaviour of its rows determines how it is read:

* a hook INSERTs a row with NULL tokens when a sub-agent ends; a parser UPDATEs that row in place later, up or down, any
  number of times, and INSERTs rows that no hook announced. So a change is found by reading a followed session again by
  index, never by `id > last seen`, and never by scanning the table;
* a commit changes the `-wal` file and `PRAGMA data_version`, not the main file's mtime;
* the file belongs to interstat: it is opened read-only, nothing is written beside it, and reading it delays no writer.
"""

from fluxbudgetd.sources.interstat.source import InterstatSource

__all__ = ["InterstatSource"]
