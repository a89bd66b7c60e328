"""intercore's databases, `PROJECT/.clavain/intercore.db`: runs, their phases, who works for them, and dispatches.

How they are read follows from what their writer, the program `ic`, does:

* Each call of `ic` opens the database, commits and closes it. The last process to close it removes the `-wal` file. If
  a reader has the database open at that time, the file stays, and a backup by `ic init` lacks its contents. So each
  read opens the database and closes it again, and takes no lock if there is no `-wal` file.
* A change shows in the stamps of the main file and the `-wal` file.
* New versions only add columns and tables. So the columns that a version must have are checked, not only its number.

A database may have come with a cloned repository. So nothing in it is trusted: only real tables are read, every list
and text has a limit, and so does the time that a query takes.

Paths are text, as `fluxbudgetd.wire.text` folds them. All but `IntercoreDatabase.stamp` block.
"""

from fluxbudgetd.sources.intercore.finding import Found, find, found_at
from fluxbudgetd.sources.intercore.opening import Stamp
from fluxbudgetd.sources.intercore.source import IntercoreDatabase

__all__ = ["Found", "IntercoreDatabase", "Stamp", "find", "found_at"]
