"""Where clients find the daemon: the socket and its lock file, which are restored if they are removed.

logind removes a user's runtime directory at the last logout, and cleaners remove files that look old, while the daemon
keeps running. The kernel reports the removal (inotify; without it, the files are checked every five seconds). Then:

* the files are restored a second later. Restored at once, they could make another program fail to remove the
  directory, or be created on a file system that is about to be unmounted;
* the socket's directory is created again, but not its parent: logind creates the runtime directory;
* a socket that was passed belongs to systemd: if its file is missing, that is only reported;
* if another daemon has taken the lock by then, that daemon serves.

Open connections are not affected. The old socket is closed when the connections in its queue have been accepted.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread
import structlog

from fluxbudgetd.errors import StartError
from fluxbudgetd.inotify import GONE, MOVED, REMOVED, Watch
from fluxbudgetd.server.listener import Listener, bind
from fluxbudgetd.server.locking import LockFile, Note, private_directory
from fluxbudgetd.wire.text import shown_path

log = structlog.get_logger()

_QUIET_SECONDS = 1.0
_RETRY_SECONDS = 1.0
# inotify does not report a lazy unmount while files are open, so restored files are checked a few times more. Without
# inotify, the check is repeated for ever.
_RECHECK_SECONDS = 5.0
_RECHECKS = 6


class Endpoint:
    """The socket at a path. `directory_is_ours`: its directory has only fluxbudget's files.

    `beside` are directories below the socket's directory whose removal matters, too. `default` is the path at which
    clients look first, if it is another one: the lock file there gets a note that says where the socket is. The note is
    removed at the end, unless `markers`, one of these directories, has files by then: hooks must find those.
    """

    def __init__(
        self,
        path: str,
        *,
        directory_is_ours: bool,
        passed: Listener | None = None,
        beside: tuple[str, ...] = (),
        default: str | None = None,
        markers: str | None = None,
    ) -> None:
        self.path = path
        #: Why clients cannot connect, or None.
        self.fault: StartError | None = None
        self._directory = os.path.dirname(path)
        self._directory_is_ours = directory_is_ours
        self._lock = LockFile(f"{path}.lock", f"the socket {path}", path)
        self._beside = beside
        self._note = None if default is None else Note(f"{default}.lock", path)
        self._markers = markers
        self._passed = passed
        self._bound: Listener | None = None
        # Held while files are restored, and when the socket's file is removed at the end.
        self._restoring = threading.Lock()
        self._is_withdrawn = False

    @property
    def listener(self) -> Listener:
        """Return the listening socket, inside `bound`."""
        listener = self._passed or self._bound
        if listener is None:
            raise RuntimeError("the socket is not bound yet")
        return listener

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and take the lock; raise `StartError` if that is impossible. Blocks."""
        self._make_private()
        with self._lock:
            yield

    @contextmanager
    def bound(self) -> Iterator[None]:
        """Listen; the lock is held. Raise `StartError` if that is impossible. Blocks."""
        if self._passed is None:
            self._bound = bind(self.path)
        try:
            if self._note is not None:
                self._note.leave()
            yield
        finally:
            if self._bound is not None:
                self._bound.close()
            if self._note is not None and not (self._markers and _has_files(self._markers)):
                self._note.remove()

    def withdraw(self) -> None:
        """Stop restoring files, and remove the socket's file so that new clients fail fast. Blocks."""
        with self._restoring:
            self._is_withdrawn = True
            self.listener.unlink()

    async def keep(self, on_rebound: Callable[[Listener], None], on_removed: Callable[[], None]) -> None:
        """Restore what is removed, until cancelled.

        `on_rebound` must switch to the new listening socket before it returns, because the old one is closed then.
        `on_removed` is called when something in the directory has been removed, once the directory exists again.
        """
        rechecks, has_changed, is_complete = 0, False, True
        while True:
            # Watch first, then check, so that no removal is missed.
            was_complete = is_complete
            watch, is_complete = await anyio.to_thread.run_sync(self._watch)
            try:
                new = await anyio.to_thread.run_sync(self._restored)
                if new is not None:
                    rechecks, has_changed = _RECHECKS, True
                    self._replace(new, on_rebound)
                    continue  # to watch the directory, which may be a new one
                if self.fault is not None:
                    has_changed = True
                    await anyio.sleep(_RETRY_SECONDS)
                    continue
                if has_changed or (was_complete and not is_complete):
                    on_removed()
                    rechecks = max(rechecks, 1)  # to watch what is created again
                has_changed = False
                with anyio.move_on_after(_RECHECK_SECONDS if rechecks or watch is None else math.inf):
                    await (anyio.sleep_forever() if watch is None else watch.happened())
                    has_changed = True
            finally:
                if watch is not None:
                    watch.close()
            if has_changed:
                await anyio.sleep(_QUIET_SECONDS)
            rechecks = max(0, rechecks - 1)

    def _replace(self, new: Listener, on_rebound: Callable[[Listener], None]) -> None:
        old, self._bound = self._bound, new
        on_rebound(new)
        if old is not None:
            old.socket.close()
        log.warning("the socket was removed, and is bound again", socket=shown_path(self.path))

    def _watch(self) -> tuple[Watch | None, bool]:
        """Return a watch of everything whose removal makes the daemon unreachable, or None if there can be none.

        The second value is False if one of the directories beside the socket is missing.
        """
        try:
            watch = Watch()
        except OSError:
            return None, all(map(os.path.isdir, self._beside))
        directory = self._directory
        while directory != (parent := os.path.dirname(directory)):
            # It may be missing, which `_restored` finds, or not readable.
            _is_added(watch, directory, GONE)
            directory = parent
        _is_added(watch, self._directory, REMOVED | GONE | MOVED)
        added = [_is_added(watch, path, REMOVED | GONE) for path in self._beside]
        return watch, all(added)

    def _restored(self) -> Listener | None:
        """Restore what is missing; return the new socket, if there is one. Sets `fault`. Blocks."""
        with self._restoring:
            try:
                new = None if self._is_withdrawn else self._restore()
            except StartError as exc:
                if self.fault is None or self.fault.message != exc.message:
                    log.error("clients cannot connect", what=exc.message, hint=exc.hint)
                self.fault = exc
                return None
            self.fault = None
            return new

    def _make_private(self) -> None:
        """Create the directory if it is missing; raise `StartError` if others could write to it."""
        private_directory(self._directory, ours=self._directory_is_ours)

    def _restore(self) -> Listener | None:
        if not os.path.isdir(os.path.dirname(self._directory)):
            raise StartError(
                f"the directory {shown_path(self._directory)} was removed",
                "the socket is bound again when its parent exists",
            )
        # Checked only once: if the directory is replaced after this, nothing may be created in the new one.
        is_intact = self._lock.is_held() and self.listener.is_reachable()
        if not is_intact:
            # Even if the directory exists: another user may have created it after it was removed.
            self._make_private()
            self._lock.take()
        if self._note is not None:
            self._note.leave()
        if is_intact or self.listener.is_reachable():
            return None
        if self._passed is not None:
            raise StartError(
                f"the socket {shown_path(self.path)}, which was passed to this daemon, was removed",
                "as a systemd service: 'systemctl --user restart fluxbudgetd.socket'",
            )
        return bind(self.path)


def _has_files(directory: str) -> bool:
    try:
        return bool(os.listdir(directory))
    except OSError:
        return False


def _is_added(watch: Watch, directory: str, events: int) -> bool:
    try:
        watch.add(directory, events)
    except OSError:
        return False
    return True
