"""The labels of beads, read and written with the program `bd`.

`bd` has properties that determine how it is called:

* it waits for ever while another process holds its database's lock. So each call has a time limit, after which its
  whole process group is killed, and no client ever waits for one;
* it finds its database from the working directory. So it runs in the directory that holds `.beads`, without the
  variables that name another database;
* it takes prefixes of ids. So an answer counts only if it is about the id that was asked for.
"""

from fluxbudgetd.sources.beads.source import BeadsError, BeadsReport, BeadsSource

__all__ = ["BeadsError", "BeadsReport", "BeadsSource"]
