"""The process: takes locks and sockets, starts the service and the server, and stops them in order."""

import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Never

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from fluxbudgetd import __version__
from fluxbudgetd.clock import now_micros
from fluxbudgetd.config.locations import Locations
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ChannelError, FluxError
from fluxbudgetd.events.channels import HostEnvironment
from fluxbudgetd.events.newest import NewestEvents
from fluxbudgetd.ledger import Ledger, open_ledger
from fluxbudgetd.notify.relocation import move_markers
from fluxbudgetd.server.dispatch import handle
from fluxbudgetd.server.endpoint import Endpoint
from fluxbudgetd.server.handlers import Context
from fluxbudgetd.server.limits import Limits
from fluxbudgetd.server.listener import Listener
from fluxbudgetd.server.locking import LockFile, private_directory
from fluxbudgetd.server.server import Server
from fluxbudgetd.service import Service
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.supervision import Supervision
from fluxbudgetd.systemd import Manager
from fluxbudgetd.wire.state_names import hard_directory, state_directory

log = structlog.get_logger()

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DRAIN_SECONDS = 3.0
_CLOSE_SECONDS = 1.0
_SPARE_DESCRIPTORS = 256
# A thread that parses rows holds the interpreter for at most this long while a request waits.
_SWITCH_SECONDS = 0.0005


def hold_signals() -> None:
    """Block the signals that end or reload the daemon until they are handled.

    Otherwise a signal during start-up would leave the socket file in place. Call this before any thread is started,
    because a thread that does not block the signals would receive them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def run(locations: Locations, settings: Settings, manager: Manager, passed: Listener | None) -> None:
    """Serve until SIGTERM or SIGINT, on the `passed` socket if there is one; raise `StartError` if that is impossible.

    Blocking calls (directories, locks, binding) are made before the event loop starts.
    """
    _prepare_process()
    private_directory(locations.state_dir, ours=locations.state_dir_is_ours)
    endpoint = Endpoint(
        locations.socket,
        directory_is_ours=locations.socket_dir_is_ours,
        passed=passed,
        beside=(state_directory(locations.socket), hard_directory(locations.socket)),
        default=locations.elsewhere,
        markers=hard_directory(locations.socket),
    )
    state_lock = LockFile(
        os.path.join(locations.state_dir, "fluxbudgetd.lock"), f"the state in {locations.state_dir}", locations.socket
    )
    with endpoint.locked(), state_lock, endpoint.bound():
        _move_markers(state_lock.last_socket, locations.socket)
        anyio.run(_with_ledger, locations, settings, manager, endpoint)


def refuse(passed: Listener, error: FluxError, seconds: float) -> bool:
    """Answer clients of a passed socket with an error for `seconds`; return True if there were any.

    A client left in the socket's queue would make systemd start the daemon again at once.
    """
    return anyio.run(_refuse, passed, error, seconds)


async def _refuse(passed: Listener, error: FluxError, seconds: float) -> bool:
    refused = 0

    def refuse_request(_request: object, _pid: int) -> Never:
        nonlocal refused
        refused += 1
        raise error

    server = Server(refuse_request)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, passed.socket)
        await anyio.sleep(seconds)
        server.stop_accepting()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await server.drained()
        tasks.cancel_scope.cancel()
    return refused > 0


async def _with_ledger(locations: Locations, settings: Settings, manager: Manager, endpoint: Endpoint) -> None:
    with anyio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        newest = NewestEvents()
        ledger, moved = await open_ledger(locations.state_dir, newest.add)
        if moved is not None:
            log.error("damaged ledger moved aside; starting with a new one", moved_to=moved)
        try:
            await _serve(locations, settings, ledger, newest, manager, endpoint, signals)
        finally:
            settings.close()
            with anyio.CancelScope(shield=True):
                await ledger.close()
    log.info("stopped")


async def _serve(
    locations: Locations,
    settings: Settings,
    ledger: Ledger,
    newest: NewestEvents,
    manager: Manager,
    endpoint: Endpoint,
    signals: AsyncIterator[signal.Signals],
) -> None:
    host = HostEnvironment(
        os.environ,
        os.geteuid(),
        locations.interband_root,
        state_directory(locations.socket),
        hard_directory(locations.socket),
    )
    service = Service(
        InterstatSource(locations.interstat_db, is_chosen=locations.interstat_db_is_chosen),
        TranscriptSource(settings.claude_dirs, are_chosen=settings.claude_dirs_are_chosen),
        ledger,
        newest,
        settings,
        host,
    )
    await service.load()
    context = Context(
        service=service,
        state_dir=locations.state_dir,
        started_at=now_micros(),
        connections=lambda: server.connections,
        endpoint_fault=lambda: endpoint.fault,
    )

    server = Server(partial(handle, context), Limits(connections=_allow_connections()), service.totals.turn)
    supervision = Supervision(manager, service)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(service.serve)
        tasks.start_soon(server.serve, endpoint.listener.socket)
        tasks.start_soon(endpoint.keep, lambda new: server.move_to(new.socket), service.restore_state_files)
        gc.freeze()
        log.info(
            "ready",
            socket=locations.socket,
            config=settings.config_path,
            pid=os.getpid(),
            version=__version__,
            runs=len(service.accounts.runs),
        )
        await supervision.ready()
        tasks.start_soon(supervision.serve)
        await _until_stopped(supervision, signals, tasks)
        await supervision.stopping(server.connections)
        # Remove the socket first, so that new clients fail fast. If the socket was passed, they wait in its queue for
        # the next daemon.
        await anyio.to_thread.run_sync(endpoint.withdraw)
        server.stop_accepting(leave_queue=endpoint.listener.is_passed)
        with anyio.move_on_after(_DRAIN_SECONDS):
            await server.drained()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await service.reopen_sources()
        tasks.cancel_scope.cancel()


async def _until_stopped(
    supervision: Supervision, signals: AsyncIterator[signal.Signals], tasks: anyio.abc.TaskGroup
) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            log.info("stopping", signal=number.name)
            return
        log.info("reloading the configuration, reopening the sources")
        tasks.start_soon(supervision.reload)


def _move_markers(last_socket: str | None, socket: str) -> None:
    """Move the markers beside this socket if the last daemon with this state listened at another one. Blocks."""
    try:
        if last_socket is not None:
            move_markers(last_socket, socket)
    except ChannelError as exc:
        log.warning("markers of stopped runs are left at another socket", what=exc.message, hint=exc.hint)


def _prepare_process() -> None:
    os.umask(0o077)
    sys.setswitchinterval(_SWITCH_SECONDS)


def _allow_connections() -> int:
    """Raise the limit of open files as far as needed and possible; return how many connections it allows.

    Keep descriptors in reserve to answer `busy` to connections over the limit, and to open files for the others.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = Limits().connections
    wanted = most + _SPARE_DESCRIPTORS
    # (An unlimited number is -1 here.)
    if 0 <= soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return most
    return min(most, max(soft - _SPARE_DESCRIPTORS, soft // 2))
