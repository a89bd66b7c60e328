"""The labels of beads, read and written with the program `bd`.

How `bd` is called follows from how it behaves:

* It waits for ever while another process holds its database's lock. So each call has a time limit, after which its
  whole process group is killed, and no client ever waits for a call.
* It finds its database from the working directory. So it runs in the directory that contains `.beads`, without the
  environment variables that name another database.
* It accepts prefixes of ids. So an answer counts only if it is about the id that was asked for.
"""

from fluxbudgetd.sources.beads.source import BeadsError, BeadsReport, BeadsSource

__all__ = ["BeadsError", "BeadsReport", "BeadsSource"]
