"""The composition root: puts the parts together, runs them, takes them apart in order."""

import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Never

import anyio
import anyio.abc
import anyio.to_thread
import structlog

from fluxbudgetd import __version__, listening
from fluxbudgetd.config.locations import Locations
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.engine import Engine
from fluxbudgetd.engine.channels import Surroundings
from fluxbudgetd.engine.engine import now_micros
from fluxbudgetd.errors import FluxError
from fluxbudgetd.handlers import Context, handle
from fluxbudgetd.ledger import Ledger, open_ledger
from fluxbudgetd.server import MAX_CONNECTIONS, Server
from fluxbudgetd.sources.interstat import InterstatSource
from fluxbudgetd.sources.transcripts import TranscriptSource
from fluxbudgetd.supervision import Supervision
from fluxbudgetd.systemd import Manager
from fluxbudgetd.wire.state_names import state_directory

log = structlog.get_logger()

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_DRAIN_SECONDS = 3.0
_CLOSE_SECONDS = 1.0
_SPARE_DESCRIPTORS = 256
# A reader thread in Python holds the interpreter for this long at most while a request waits for it.
_SWITCH_SECONDS = 0.0005


def hold_signals() -> None:
    """Let the signals that end or reload the daemon wait until somebody listens to them.

    So a socket's file is never left behind for lack of a moment. Call it before any thread is started, which would take
    them instead.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def run(locations: Locations, settings: Settings, manager: Manager, given: listening.Listener | None) -> None:
    """Serve until SIGTERM or SIGINT, on the socket that was given, if any; raises `StartError` when that cannot begin.

    What blocks for its nature (directories, locks, binding) is done before the event loop starts.
    """
    _prepare_process()
    listening.private_directory(locations.state_dir, ours=locations.state_dir_is_ours)
    listening.private_directory(os.path.dirname(locations.socket), ours=locations.socket_dir_is_ours)
    state_lock = os.path.join(locations.state_dir, "fluxbudgetd.lock")
    with (
        listening.lock(f"{locations.socket}.lock", f"the socket {locations.socket}"),
        listening.lock(state_lock, f"the state in {locations.state_dir}"),
        nullcontext(given) if given is not None else listening.bound(locations.socket) as listener,
    ):
        anyio.run(_with_ledger, locations, settings, manager, listener)


def refuse(given: listening.Listener, error: FluxError, seconds: float) -> bool:
    """Tell those who come to a given socket why nobody serves it; tells whether anybody did.

    Whoever is left in its queue would have the daemon started at once again, only to wait in vain once more.
    """
    return anyio.run(_refuse, given, error, seconds)


async def _refuse(given: listening.Listener, error: FluxError, seconds: float) -> bool:
    told = 0

    def tell(_request: object) -> Never:
        nonlocal told
        told += 1
        raise error

    server = Server(tell)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, given.socket)
        await anyio.sleep(seconds)
        server.stop_accepting()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await server.drained()
        tasks.cancel_scope.cancel()
    return told > 0


async def _with_ledger(
    locations: Locations, settings: Settings, manager: Manager, listener: listening.Listener
) -> None:
    with anyio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        ledger, moved = await open_ledger(locations.state_dir)
        if moved is not None:
            log.error("damaged ledger moved aside; starting with a new one", moved_to=moved)
        try:
            await _serve(locations, settings, ledger, manager, listener, signals)
        finally:
            with anyio.CancelScope(shield=True):
                await ledger.close()
    log.info("stopped")


async def _serve(
    locations: Locations,
    settings: Settings,
    ledger: Ledger,
    manager: Manager,
    listener: listening.Listener,
    signals: AsyncIterator[signal.Signals],
) -> None:
    around = Surroundings(os.environ, os.geteuid(), locations.interband_root, state_directory(locations.socket))
    engine = Engine(
        InterstatSource(locations.interstat_db), TranscriptSource(locations.claude_dir), ledger, settings, around
    )
    await engine.load()
    context = Context(
        engine=engine, state_dir=locations.state_dir, started_at=now_micros(), connections=lambda: server.connections
    )

    server = Server(lambda request: handle(context, request), _allow_connections())
    supervision = Supervision(manager, engine)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.serve)
        tasks.start_soon(server.serve, listener.socket)
        gc.freeze()
        log.info(
            "ready",
            socket=locations.socket,
            config=settings.config_path,
            pid=os.getpid(),
            version=__version__,
            runs=len(engine.book.runs),
        )
        await supervision.ready()
        tasks.start_soon(supervision.serve)
        await _until_told_to_stop(supervision, signals, tasks)
        await supervision.stopping(server.connections)
        # The name goes first: whoever comes now does not wait for a daemon that is on its way out. Behind a name that
        # is not ours they wait for the next one.
        await anyio.to_thread.run_sync(listener.unlink)
        server.stop_accepting()
        with anyio.move_on_after(_DRAIN_SECONDS):
            await server.drained()
        with anyio.move_on_after(_CLOSE_SECONDS):
            await engine.reopen_sources()
        tasks.cancel_scope.cancel()


async def _until_told_to_stop(
    supervision: Supervision, signals: AsyncIterator[signal.Signals], tasks: anyio.abc.TaskGroup
) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            log.info("stopping", signal=number.name)
            return
        log.info("reloading: the configuration is read again, sources are opened anew")
        tasks.start_soon(supervision.reload)


def _prepare_process() -> None:
    os.umask(0o077)
    sys.setswitchinterval(_SWITCH_SECONDS)


def _allow_connections() -> int:
    """Raise the limit of open files as far as needed and possible; return how many connections it allows.

    Connections never take the last descriptors: one that is over the limit hears `busy` instead of nothing, and those
    that are served get numbers that are read from files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + _SPARE_DESCRIPTORS
    # (An unlimited number is -1 here.)
    if 0 <= soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(soft - _SPARE_DESCRIPTORS, soft // 2))
