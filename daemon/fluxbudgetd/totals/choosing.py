"""Which run a request means.

An id, a scope or a session that the request names decides alone. Otherwise the hints decide, in this order:

1. `$FLUXBUDGET_RUN` decides alone, too. A session keeps the variable that it was started with, so if that run has ended
   and the session has moved on to an active run, the request means the active run.
2. The bead, then the sessions: the first of these that a run has.
3. The nearest directory that is the project of an active run: the working directory or one of its parents, where a git
   worktree is followed by its main checkout (`sources.worktrees`). With a bead set, that run must have no scope: a
   sprint without a run must not get the numbers of another sprint in the same directory.

Several active runs of that one directory are *tied*. No rule can know which of them is meant. So a tie is an error,
except where a limit is enforced: there, a hard run among them applies, of several the one with the least left.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from fluxbudgetd.errors import AmbiguousRunError, NoRunError
from fluxbudgetd.totals.account import RunAccount
from fluxbudgetd.totals.accounts import Accounts
from fluxbudgetd.wire.messages import Hints


class Choice(NamedTuple):
    """The run that applies. If its directory has several runs and none was named, `tied` are the ids of all of them."""

    account: RunAccount
    tied: tuple[str, ...] = ()


class RunChooser:
    """Finds the run that a request means.

    `on_unknown_scope` is called when a request names a scope that no run has.
    """

    def __init__(self, accounts: Accounts, on_unknown_scope: Callable[[str, Hints], None]) -> None:
        self._accounts = accounts
        self._on_unknown_scope = on_unknown_scope

    def named(self, run: str | None, scope: str | None, session: str | None, hints: Hints) -> RunAccount | None:
        """Return the run that a request names, or a hint other than the directory; None if none does.

        Raises `NoRunError` for a name that no run has.
        """
        if run is not None:
            return _require(self._accounts.runs.get(run), "with id", run)
        if scope is not None:
            return _require(self._by_scope(scope, hints), "with scope", scope)
        if session is not None:
            return _require(self._accounts.run_of_session(session), "with session", session)
        if hints.run is not None:
            named = _require(self._accounts.runs.get(hints.run), "with id ($FLUXBUDGET_RUN)", hints.run)
            return self._moved_on(named, hints)
        found = self._by_scope(hints.scope, hints) if hints.scope else None
        for name in hints.sessions:
            found = found or self._accounts.run_of_session(name)
        return found

    def nearest(self, places: Iterable[str], hints: Hints) -> list[RunAccount]:
        """Return the active runs of the first of these directories that has any, by id."""
        for place in places:
            found = self._accounts.active_in(place)
            if hints.scope:
                found = [account for account in found if not account.run.scope]
            if found:
                return found
        return []

    def _moved_on(self, named: RunAccount, hints: Hints) -> RunAccount:
        """Return the run of `$FLUXBUDGET_RUN` or, if it has ended, an active one that the session has moved on to."""
        if named.run.status == "active":
            return named
        others = (self._accounts.run_of_session(name) for name in hints.sessions)
        return next((other for other in others if other is not None and other.run.status == "active"), named)

    def _by_scope(self, scope: str, hints: Hints) -> RunAccount | None:
        found = self._accounts.run_of_scope(scope)
        if found is None:
            self._on_unknown_scope(scope, hints)
        return found


def single(tied: list[RunAccount]) -> RunAccount | None:
    """Return the run of a directory; None if there is none. Raises `AmbiguousRunError` if there are several."""
    if len(tied) > 1:
        raise AmbiguousRunError(tied[0].run.project_dir, ids(tied))
    return tied[0] if tied else None


def enforced(tied: list[RunAccount]) -> list[RunAccount]:
    """Return the hard ones of several runs of a directory; raises `AmbiguousRunError` if none is hard."""
    found = [account for account in tied if account.run.enforcement == "hard"]
    if not found:
        single(tied)
    return found


def least_left(tied: Iterable[RunAccount]) -> RunAccount:
    """Return the run with the least left by the last known numbers, then the one with the smallest id."""

    def order(account: RunAccount) -> tuple[bool, int, str]:
        remaining = account.balance().remaining
        return remaining is None, remaining or 0, account.run.id

    return min(tied, key=order)


def ids(accounts: Iterable[RunAccount]) -> tuple[str, ...]:
    """Return the ids of runs."""
    return tuple(account.run.id for account in accounts)


def no_run(hints: Hints) -> NoRunError:
    """Return the error for a request that names no run, if no active run has its directory."""
    return NoRunError(
        "no run was named" if hints.cwd is None else f"no active run has {hints.cwd} or a parent of it as its project",
        "start one with 'fluxbudgetctl run start', or name one with --run, --scope or --session",
    )


def _require(account: RunAccount | None, what: str, value: str) -> RunAccount:
    if account is None:
        raise NoRunError(f"there is no run {what} {value!r}", "see 'fluxbudgetctl run list --all'")
    return account
