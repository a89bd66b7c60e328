"""intercore's databases, `PROJECT/.clavain/intercore.db`: runs, their phases, who works for them, and dispatches.

The behaviour of their writer, the program `ic`, determines how they are read:

* `ic` opens the database, commits and closes it, each time. The last one to close it removes the `-wal` file, unless
  another process has it open; `ic init` then makes a backup without what is in that file. So each read opens the
  database and closes it again, and takes no lock if there is no `-wal` file;
* a change is noticed by the stamps of the main file and the `-wal` file;
* versions only add columns and tables. What a version must have is checked, not only its number.

A database may have come with a cloned repository. So nothing in it is trusted: only real tables are read, every list
and text has a limit, and so has the time that a query takes.

Paths are text, as `fluxbudgetd.wire.text` folds them. All but `IntercoreDatabase.stamp` block.
"""

from fluxbudgetd.sources.intercore.finding import Found, find, found_at
from fluxbudgetd.sources.intercore.opening import Stamp
from fluxbudgetd.sources.intercore.source import IntercoreDatabase

__all__ = ["Found", "IntercoreDatabase", "Stamp", "find", "found_at"]
