"""Which run a request means.

An id, a scope or a session that the request names decides alone. Otherwise the hints decide, in this order:

1. `$FLUXBUDGET_RUN` decides alone, too. A session keeps the variable that it was started with, so if that run has ended
   and the session has moved on to an active run, the request means the active run.
2. The bead, then the sessions, each if a run knows it.
3. The only active run whose project directory is the working directory or a parent of it. With a bead set, that run
   must have no scope: a sprint without a run must not get the numbers of another sprint in the same directory.
"""

from fluxbudgetd.errors import NoRunError
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import Hints

# At most this many runs are listed in an error.
_MOST_LISTED = 5


class RunChooser:
    """Finds the run that a request means."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def find(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> RunAccount:
        """Return the run that a request means; raises `NoRunError`."""
        if run is not None:
            return _require(self._accounts.runs.get(run), "with id", run)
        if scope is not None:
            return _require(self._by_scope(scope), "with scope", scope)
        if session is not None:
            return _require(self._accounts.run_of_session(session), "with session", session)
        if hints.run is not None:
            named = _require(self._accounts.runs.get(hints.run), "with id ($FLUXBUDGET_RUN)", hints.run)
            return self._moved_on(named, hints)
        found = self._by_hints(hints)
        if found is None:
            raise NoRunError(
                "no run was named"
                if hints.cwd is None
                else f"no active run has {hints.cwd} or a parent of it as its project",
                "start one with 'fluxbudgetctl run start', or name one with --run, --scope or --session",
            )
        return found

    def find_if_any(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> RunAccount | None:
        """Return the run that a request means; None if it names no run and the hints lead to none.

        Raises `NoRunError` for a name that no run has, and for hints that fit several runs, because such a request must
        not be answered as if there were no run.
        """
        if run or scope or session or hints.run:
            return self.find(run, scope, session, hints)
        return self._by_hints(hints)

    def _moved_on(self, named: RunAccount, hints: Hints) -> RunAccount:
        """Return the run of `$FLUXBUDGET_RUN`, or the active one that the session has moved on to after it ended."""
        if named.run.status == "active":
            return named
        others = (self._accounts.run_of_session(name) for name in hints.sessions)
        return next((other for other in others if other is not None and other.run.status == "active"), named)

    def _by_scope(self, scope: str) -> RunAccount | None:
        runs = self._accounts.scopes.get(scope)
        if not runs:
            return None
        active = [run for run in runs if run.status == "active"]
        return self._accounts.runs[(active or runs)[-1].id]

    def _by_hints(self, hints: Hints) -> RunAccount | None:
        found = self._by_scope(hints.scope) if hints.scope else None
        for name in hints.sessions:
            found = found or self._accounts.run_of_session(name)
        return found or self._by_directory(hints)

    def _by_directory(self, hints: Hints) -> RunAccount | None:
        if hints.cwd is None:
            return None
        directory = hints.cwd.rstrip("/") + "/"
        candidates = [
            account
            for account in self._accounts.active()
            if directory.startswith(account.run.project_dir.rstrip("/") + "/")
            and (not hints.scope or not account.run.scope)
        ]
        if len(candidates) > 1:
            names = ", ".join(sorted(account.run.id for account in candidates)[:_MOST_LISTED])
            raise NoRunError(
                f"{len(candidates)} active runs have {hints.cwd} or a parent of it as their project: {names}",
                "name one with --run, --scope or --session",
            )
        return candidates[0] if candidates else None


def _require(account: RunAccount | None, what: str, value: str) -> RunAccount:
    if account is None:
        raise NoRunError(f"there is no run {what} {value!r}", "see 'fluxbudgetctl run list --all'")
    return account
