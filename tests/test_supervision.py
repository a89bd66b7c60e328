"""The daemon as a service manager sees it. (tests/jailed runs it under a real systemd.)"""

import os
import signal
import socket
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from fluxbudgetd import service as service_module
from fluxbudgetd.errors import LedgerError, StartError
from fluxbudgetd.server.listener import passed_listener
from fluxbudgetd.service import Service
from fluxbudgetd.supervision import Supervision
from fluxbudgetd.systemd import Manager, passed_descriptors
from fluxbudgetd.wire import messages
from harness.activation import Reports, activation, reports
from harness.daemon import PATIENCE, Home, Wire, started, wait_for
from harness.interstat import Interstat
from harness.service import HangingSource, service_over, within

WATCHED = 0.4


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fluxbudget-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def sent(tmp_path: Path) -> Iterator[Reports]:
    with reports(str(tmp_path / "notify")) as found:
        yield found


def configure(home: Home, text: str) -> Path:
    place = home.root / ".config" / "fluxbudget" / "config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def connect_when_listening(path: Path) -> Wire:
    """Wait for the socket to listen, and return a connection to it."""

    def connection() -> Wire | None:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return Wire(path)
        return None

    made = wait_for(connection, "the socket to listen")
    assert isinstance(made, Wire)
    return made


def activated(home: Home, watchdog: float = 0.0) -> tuple[str, ...]:
    return activation(home.socket, str(home.root / "notify"), watchdog)


def test_ready_is_sent_when_the_ledger_is_open_and_the_socket_serves(
    home: Home, interstat: Interstat, address: str
) -> None:
    with reports(address) as sent:
        home.start(wait=False, prefix=activation(home.socket, address))
        ready = sent.next("READY")
        assert ready == {"READY": "1", "STATUS": "0 active runs; interstat not read yet, transcripts ok"}
        assert (home.state / "ledger.db").exists()
        assert isinstance(home.ask(messages.Ping()), messages.PingAnswer)


def test_status_follows_runs_and_sources(home: Home, interstat: Interstat, sent: Reports) -> None:
    home.start(prefix=activated(home))
    sent.next("READY")
    run = started(home, session="s1")
    home.spend(run)
    while sent.next("STATUS")["STATUS"] != "1 active run; interstat ok, transcripts ok":
        pass
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.interstat.write_bytes(b"this is no database" * 100)
    home.spend(run)
    assert "interstat " in sent.next("STATUS")["STATUS"]
    assert "interstat ok" not in sent.seen[-1]["STATUS"]
    home.ok("run", "finish", "--run", run)
    while not sent.next("STATUS")["STATUS"].startswith("0 active runs"):
        pass


def test_reload_is_reported_from_beginning_to_end(home: Home, interstat: Interstat, sent: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    sent.next("READY")
    started(home, id="before")
    configure(home, "[runs]\nwarn_pct = 70\n")
    daemon.signal(signal.SIGHUP)
    assert int(sent.next("RELOADING")["MONOTONIC_USEC"]) > 0
    assert sent.next("READY")["STATUS"].startswith("1 active run; ")
    started(home, id="after")
    assert [home.json("run", "show", "--run", one)["run"]["warn_pct"] for one in ("before", "after")] == [80, 70]


def test_watchdog_is_fed_and_the_stop_is_reported(home: Home, interstat: Interstat, sent: Reports) -> None:
    daemon = home.start(prefix=activated(home, WATCHED))
    sent.next("READY")
    for _ in range(3):
        sent.next("WATCHDOG")
    with Wire(home.socket) as wire:
        wire.ask(messages.Ping())
        daemon.signal(signal.SIGTERM)
        assert sent.next("STOPPING")["STATUS"] == "stopping: 1 connection to close"
    assert daemon.process.wait(20) == 0


def test_watchdog_is_not_fed_unless_the_manager_has_one(home: Home, interstat: Interstat, sent: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    sent.next("READY")
    daemon.signal(signal.SIGTERM)
    sent.next("STOPPING")
    assert not any("WATCHDOG" in one for one in sent.seen)


@asynccontextmanager
async def supervised(
    directory: Path,
) -> AsyncIterator[tuple[Service, HangingSource, Callable[[], Awaitable[bool]]]]:
    """Yield a service with a run, its source, and a function that returns True if the watchdog is fed now."""
    interstat = Interstat(directory / "metrics.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(directory / "notify"))
        receiving.setblocking(False)
        async with service_over(directory) as (service, source):
            await service.lifecycle.start(messages.RunStart(id="r1", project_dir="/p", session="s1"), within(60))
            supervision = Supervision(Manager(str(directory / "notify"), WATCHED), service)

            async def is_fed() -> bool:
                await anyio.lowlevel.checkpoint()  # feeding does not wait if a source stalls: let the reader go on
                await supervision.feed_watchdog()
                try:
                    return receiving.recv(1000) == b"WATCHDOG=1"
                except BlockingIOError:
                    return False

            interstat.insert("s1", input_tokens=5, output_tokens=0)
            assert await is_fed()
            yield service, source, is_fed
    interstat.close()


def test_hanging_reader_starves_the_watchdog(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as (service, source, is_fed):
            hanging = Interstat(tmp_path / "metrics.db")
            source.hang()
            hanging.insert("s1", input_tokens=5, output_tokens=0)
            for _ in range(2):
                standing = await service.totals.standing(service.accounts.runs["r1"], within(WATCHED))
                assert standing.stale_why is not None
            assert not await is_fed()
            source.resume()
            await service.totals.standing(service.accounts.runs["r1"], within(30))
            assert await is_fed()
            hanging.close()

    anyio.run(body)


def test_hanging_scan_of_the_whole_table_starves_the_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        gate = threading.Event()
        async with supervised(tmp_path) as (service, _source, is_fed):
            found = await service.totals.history.ask("k", lambda _source: gate.wait(60), within(0.2))
            assert not found.in_time
            assert await is_fed()
            monkeypatch.setattr(service_module, "LONGEST_SCAN_SECONDS", 0)
            assert not await is_fed()
            gate.set()
            assert (await service.totals.history.ask("k", lambda _source: True, within(30))).in_time
            assert await is_fed()

    anyio.run(body)


class Recorded(Manager):
    """A manager that records what is reported to it."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: list[str] = []

    async def reloading(self) -> None:
        self.reported.append("reloading")

    async def ready(self, status: str) -> None:
        self.reported.append("ready")


def test_reload_waits_for_the_configuration(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            manager = Recorded()
            configure_at(tmp_path, "[runs]\nwarn_pct = 61\n")
            service.settings.reading.acquire()  # like a thread whose file system does not answer
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Supervision(manager, service).reload)
                await anyio.sleep(0.2)
                assert manager.reported == ["reloading"]
                service.settings.reading.release()
            assert manager.reported == ["reloading", "ready"]
            assert service.settings.config.runs.warn_pct == 61

    anyio.run(body)


def test_reload_gives_up_on_files_that_do_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            manager = Recorded()
            service.settings.reading.acquire()
            await Supervision(manager, service, reload_seconds=0.2).reload()
            assert manager.reported == ["reloading", "ready"]

    anyio.run(body)
    # On stdout, because structlog is not configured here.
    assert "configuration not reloaded: reading timed out" in capsys.readouterr().out


def configure_at(directory: Path, text: str) -> None:
    (directory / "config.toml").write_text(text)


def test_slow_reader_that_makes_progress_does_not_starve_the_watchdog(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as (service, source, is_fed):
            source.hang()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.totals.standing, service.accounts.runs["r1"], within(30))
                while not service.totals.refresher.has_stalled(WATCHED / 2):  # noqa: ASYNC110  it depends on the clock
                    await anyio.sleep(0.01)
                service.totals.refresher.note_progress()  # as at the end of each piece of work
                assert await is_fed()
                source.resume()

    anyio.run(body)


def test_hanging_ledger_starves_the_watchdog_and_a_failing_one_does_not(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as (service, _source, is_fed):

            async def write() -> None:
                while True:
                    with suppress(LedgerError):  # when SQLite's busy timeout expires
                        await service.lifecycle.start(messages.RunStart(id="r2", project_dir="/p"), within(30))

            ledger = sqlite3.connect(
                tmp_path / "ledger.db", timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            with closing(ledger) as other:
                await anyio.to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")  # waits for a write that is under way
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write)
                    with anyio.fail_after(PATIENCE):
                        while await is_fed():
                            pass
                    other.execute("ROLLBACK")
                    with anyio.fail_after(PATIENCE):
                        while not await is_fed():
                            pass
                    tasks.cancel_scope.cancel()
            await service.ledger.close()
            assert await is_fed()

    anyio.run(body)


def test_variables_of_the_manager_are_removed_from_the_environment() -> None:
    """A program that the daemon starts must not report in its name or use its sockets."""
    environ = {
        "NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7",
        "LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/",
    }  # fmt: skip
    manager = Manager.from_environment(environ, 7)
    assert (manager.address, manager.watchdog) == ("/n", 2.0)
    assert not passed_descriptors(environ, 7)
    assert environ == {"HOME": "/"}


def test_passed_descriptors_are_not_inherited() -> None:
    saved = os.dup(3) if Path("/proc/self/fd/3").exists() else None
    reading, writing = os.pipe()
    try:
        os.dup2(reading, 3, inheritable=True)
        os.set_inheritable(3, True)
        assert list(passed_descriptors({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, 7)) == [3]
        assert not os.get_inheritable(3)
    finally:
        if saved is not None:
            os.dup2(saved, 3, inheritable=False)
            os.close(saved)
        for descriptor in {reading, writing} - {3}:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [("500000", "", 0.5), ("500000", "8", None), ("0", "7", None), ("", "7", None), ("x", "7", None), ("-1", "", None)],
)
def test_watchdog_of_another_process_is_ignored(microseconds: str, pid: str, seconds: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    assert Manager.from_environment(environ, 7).watchdog == seconds


def test_manager_that_reads_nothing_or_is_absent_delays_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        await Manager(str(tmp_path / "absent")).ready("x")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
            receiving.bind(str(tmp_path / "full"))
            manager = Manager(str(tmp_path / "full"))
            with anyio.move_on_after(0.3):
                while True:
                    await manager.status("full\nof\nlines")
            with anyio.fail_after(30):
                await manager.stopping("bye")
            assert receiving.recv(1000) == b"STATUS=full of lines"

    anyio.run(body)


def test_passed_socket_is_served_and_not_removed(home: Home, interstat: Interstat, sent: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    before = home.socket.stat().st_ino
    with Wire(home.socket) as wire:
        assert isinstance(wire.ask(messages.Ping()), messages.PingAnswer)
    assert daemon.stop() == 0
    assert home.socket.stat().st_ino == before
    assert stat.S_ISSOCK(home.socket.stat().st_mode)


def test_state_files_and_lock_are_beside_the_passed_socket(home: Home, interstat: Interstat, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "fluxbudget" / "other.sock"
    home.start(prefix=activation(elsewhere))
    assert not home.socket.exists()
    assert (elsewhere.parent / "other.sock.lock").exists()
    assert (elsewhere.parent / "state").is_dir()
    with Wire(elsewhere) as wire:
        assert isinstance(wire.ask(messages.Ping()), messages.PingAnswer)


def test_sockets_passed_to_another_process_are_ignored(home: Home, interstat: Interstat) -> None:
    home.start(prefix=("env", "LISTEN_PID=1", "LISTEN_FDS=1"))
    assert isinstance(home.ask(messages.Ping()), messages.PingAnswer)


@pytest.mark.parametrize(
    ("arguments", "count", "code", "message"),
    [
        ((), 2, 1, "2 sockets were passed"),
        (("--socket", "/elsewhere/x.sock"), 1, 64, "--socket says /elsewhere/x.sock"),
    ],
)
def test_passed_sockets_that_cannot_be_served(
    home: Home, arguments: tuple[str, ...], count: int, code: int, message: str
) -> None:
    daemon = home.start(*arguments, wait=False, prefix=activation(home.socket, count=count))
    assert daemon.process.wait(20) == code
    assert message in daemon.log


@pytest.mark.parametrize("what", ["file", "datagram", "internet", "connected", "abstract"])
def test_passed_descriptor_that_is_not_a_listening_socket_with_a_path_is_refused(what: str, tmp_path: Path) -> None:
    with ExitStack() as kept:
        if what == "file":
            descriptor = os.open(tmp_path, os.O_RDONLY)
        else:
            kind = socket.SOCK_DGRAM if what == "datagram" else socket.SOCK_STREAM
            made = kept.enter_context(socket.socket(socket.AF_INET if what == "internet" else socket.AF_UNIX, kind))
            if what == "internet":
                made.listen()
            elif what == "abstract":
                made.bind(f"\0fluxbudget-{os.getpid()}")
                made.listen()
            elif what == "datagram":
                made.bind(str(tmp_path / "d"))
            descriptor = os.dup(made.fileno())
        with pytest.raises(StartError) as caught:
            passed_listener([descriptor])
        assert "pass" in caught.value.message
        with suppress(OSError):
            os.close(descriptor)


def test_client_of_an_activated_daemon_gets_its_configuration_error(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    daemon = home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    with connect_when_listening(home.socket) as wire:
        answer = wire.ask(messages.Ping(), 20)
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "bad_config"
    assert answer.error.message.startswith(f"{place}: ")
    assert daemon.process.wait(20) == 78


def test_daemon_serves_once_its_configuration_is_corrected(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    with connect_when_listening(home.socket) as wire:
        assert isinstance(wire.ask(messages.Ping(), 20), messages.ErrorAnswer)
    configure(home, "[runs]\nwarn_pct = 70\n")

    def is_served() -> bool:
        with Wire(home.socket) as wire:
            return isinstance(wire.ask(messages.Ping(), 20), messages.PingAnswer)

    wait_for(is_served, "the daemon to serve")


def test_client_of_a_second_daemon_is_told_the_pid_of_the_first(
    home: Home, interstat: Interstat, tmp_path: Path
) -> None:
    first = home.start()
    other = tmp_path / "other" / "fluxbudget" / "x.sock"
    second = home.start(wait=False, prefix=activation(other))
    with connect_when_listening(other) as wire:
        answer = wire.ask(messages.Ping(), 20)
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "unavailable"
    assert f"fluxbudgetd pid {first.process.pid}" in answer.error.message
    assert second.process.wait(20) == 1


def test_daemon_that_cannot_start_exits_at_once_without_a_client(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    daemon = home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    assert daemon.process.wait(20) == 78
    assert "warn is not a key" in daemon.log
