"""One of intercore's databases. A failure to read it becomes its status, never an exception."""

import sqlite3
from collections.abc import Mapping

from fluxbudgetd.model import IntercoreReading, SourceStatus
from fluxbudgetd.sources.databases import state_of
from fluxbudgetd.sources.intercore import faults
from fluxbudgetd.sources.intercore.contents import read_contents
from fluxbudgetd.sources.intercore.finding import fault_at, os_path
from fluxbudgetd.sources.intercore.opening import Stamp, read_consistently, stamp_at


class IntercoreDatabase:
    """The database at one path. It need not exist, and is never kept open.

    `status` and `schema` (its `user_version`) are those of the latest read; a read that fails keeps the schema.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.status: SourceStatus = faults.status(path, "unread", "not read yet")
        self.schema: int | None = None
        self.file = os_path(path)

    def stamp(self) -> Stamp | None:
        """Return a stamp of the current state; None if there is no database. Takes two calls of `stat`.

        Equal stamps mean that nothing was committed in between. Take the stamp before `read`: the reading includes
        everything up to that stamp.
        """
        return stamp_at(self.file)

    def read(self, followed: Mapping[str, int]) -> IntercoreReading:
        """Return the active runs and the followed ones; `followed` maps ids to the number of the last known move.

        Runs in a worker thread. Takes about 70 ms at most while the database keeps changing or is locked, and a second
        if a query takes too long. Never raises because of what the file is or contains.
        """
        try:
            self._require_usable()
            reading = read_consistently(self.file, lambda connection: self._contents(connection, followed))
        except faults.FaultError as exc:
            self.status = faults.status(self.path, exc.state, exc.detail, exc.hint)
        except sqlite3.DataError as exc:
            self.status = faults.status(
                self.path, "unreadable", str(exc), "shorten the values that are longer than 4 MB"
            )
        except (sqlite3.Error, OSError, ValueError) as exc:
            self.status = faults.status(self.path, *state_of(exc))
        else:
            self.status = reading.status
            return reading
        return IntercoreReading(status=self.status, schema=self.schema)

    def _require_usable(self) -> None:
        fault = fault_at(self.file)
        if fault is not None:
            raise faults.FaultError("unreadable", fault, "only regular files of yours or of root are read")

    def _contents(self, connection: sqlite3.Connection, followed: Mapping[str, int]) -> IntercoreReading:
        # Set first, because the version may be the reason why the rest cannot be read.
        ((self.schema,),) = connection.execute("PRAGMA user_version").fetchall()
        return read_contents(connection, self.file, followed)
