"""Why a database cannot be used, as a named state with a hint."""

from fluxbudgetd.model import SourceState, SourceStatus

NAME = "intercore"

_HINTS: dict[SourceState, str] = {
    "absent": "its runs keep their last known numbers; restore it, or end the runs: fluxbudgetctl run cancel",
    "empty": "set it up with: ic init",
    "locked": "another program holds a lock on it; reading resumes when the lock is released",
    "slow": "reading took too long; check the size of its tables",
    "corrupt": "restore a backup (intercore.db.backup-*), or recover what is left with: sqlite3 FILE .recover",
    "not_a_database": "restore a backup (intercore.db.backup-*)",
    "schema_drift": "look for a newer fluxbudget",
    "unreadable": "check the permissions of the file and its directory",
}


class FaultError(Exception):
    """A database that cannot be used, with the hint to show instead of the usual one."""

    def __init__(self, state: SourceState, detail: str, hint: str = "") -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail
        self.hint = hint


def status(path: str, state: SourceState, detail: str = "", hint: str = "") -> SourceStatus:
    """Return the status of a database that was not read."""
    return SourceStatus(name=NAME, path=path, state=state, detail=detail, hint=hint or _HINTS.get(state, ""))
