"""What to do if the database cannot be read."""

from fluxbudgetd.model import SourceState

NAME = "interstat"

HINTS: dict[SourceState, str] = {
    "absent": "interstat creates it when its first sub-agent ends; another path: --interstat-db or $INTERSTAT_DB",
    "empty": "interstat has not set it up yet",
    "locked": "another program holds a lock on it; reading resumes when the lock is released",
    "slow": "reading took too long; a later answer includes the result",
    "corrupt": "recover what is left with: sqlite3 FILE .recover",
    "not_a_database": "check the path: --interstat-db or $INTERSTAT_DB",
    "schema_drift": "interstat's table has changed: look for a newer fluxbudget, or an older interstat",
    "unreadable": "check the file's and the directory's permissions",
}
