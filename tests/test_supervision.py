"""The daemon as a service manager sees it. (What systemd makes of it is shown in a real user manager.)"""

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
def told(tmp_path: Path) -> Iterator[Reports]:
    with reports(str(tmp_path / "notify")) as found:
        yield found


def configure(home: Home, text: str) -> Path:
    place = home.root / ".config" / "fluxbudget" / "config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def woken(path: Path) -> Wire:
    """Return a connection to a socket that is about to listen."""

    def connection() -> Wire | None:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return Wire(path)
        return None

    made = wait_for(connection, "the socket to listen")
    assert isinstance(made, Wire)
    return made


def activated(home: Home, watchdog: float = 0.0) -> tuple[str, ...]:
    return activation(home.socket, str(home.root / "notify"), watchdog)


def test_ready_is_told_when_the_ledger_is_open_and_the_socket_serves(
    home: Home, interstat: Interstat, address: str
) -> None:
    with reports(address) as told:
        home.start(wait=False, prefix=activation(home.socket, address))
        ready = told.next("READY")
        assert ready == {"READY": "1", "STATUS": "0 active runs; interstat not read yet, transcripts ok"}
        assert (home.state / "ledger.db").exists()
        assert isinstance(home.ask(messages.Ping()), messages.PingAnswer)


def test_status_follows_runs_and_sources(home: Home, interstat: Interstat, told: Reports) -> None:
    home.start(prefix=activated(home))
    told.next("READY")
    run = started(home, session="s1")
    home.spend(run)
    while told.next("STATUS")["STATUS"] != "1 active run; interstat ok, transcripts ok":
        pass
    interstat.close()
    for path in home.interstat.parent.iterdir():
        path.unlink()
    home.interstat.write_bytes(b"this is no database" * 100)
    home.spend(run)
    assert "interstat " in told.next("STATUS")["STATUS"]
    assert "interstat ok" not in told.seen[-1]["STATUS"]
    home.ok("run", "finish", "--run", run)
    while not told.next("STATUS")["STATUS"].startswith("0 active runs"):
        pass


def test_reload_is_told_from_its_beginning_to_its_end(home: Home, interstat: Interstat, told: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    told.next("READY")
    started(home, id="before")
    configure(home, "[runs]\nwarn_pct = 70\n")
    daemon.signal(signal.SIGHUP)
    assert int(told.next("RELOADING")["MONOTONIC_USEC"]) > 0
    assert told.next("READY")["STATUS"].startswith("1 active run; ")
    started(home, id="after")
    assert [home.json("run", "show", "--run", one)["run"]["warn_pct"] for one in ("before", "after")] == [80, 70]


def test_signs_of_life_come_while_all_is_well_and_stop_is_told(home: Home, interstat: Interstat, told: Reports) -> None:
    daemon = home.start(prefix=activated(home, WATCHED))
    told.next("READY")
    for _ in range(3):
        told.next("WATCHDOG")
    with Wire(home.socket) as wire:
        wire.ask(messages.Ping())
        daemon.signal(signal.SIGTERM)
        assert told.next("STOPPING")["STATUS"] == "stopping: 1 connection to close"
    assert daemon.process.wait(20) == 0


def test_nothing_is_sent_without_a_watchdog(home: Home, interstat: Interstat, told: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    told.next("READY")
    daemon.signal(signal.SIGTERM)
    told.next("STOPPING")
    assert not any("WATCHDOG" in one for one in told.seen)


@asynccontextmanager
async def supervised(
    directory: Path,
) -> AsyncIterator[tuple[Service, HangingSource, Callable[[], Awaitable[bool]]]]:
    """A service with a run, its source, and a function that returns True if the watchdog is fed now."""
    interstat = Interstat(directory / "metrics.db")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(str(directory / "notify"))
        receiving.setblocking(False)
        async with service_over(directory) as (service, source):
            await service.lifecycle.start(messages.RunStart(id="r1", project_dir="/p", session="s1"), within(5))
            supervision = Supervision(Manager(str(directory / "notify"), WATCHED), service)

            async def is_fed() -> bool:
                await supervision.feed_watchdog()
                try:
                    return receiving.recv(1000) == b"WATCHDOG=1"
                except BlockingIOError:
                    return False

            interstat.insert("s1", input_tokens=5, output_tokens=0)
            assert await is_fed()
            yield service, source, is_fed
    interstat.close()


def test_hanging_reader_starves_the_watchdog_while_the_loop_goes_on(tmp_path: Path) -> None:
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


def test_look_through_the_whole_table_that_hangs_sends_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    """A manager that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def reloading(self) -> None:
        self.told.append("reloading")

    async def ready(self, status: str) -> None:
        self.told.append("ready")


def test_reload_is_not_over_before_the_configuration_is_read(tmp_path: Path) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            manager = Recorded()
            configure_at(tmp_path, "[runs]\nwarn_pct = 61\n")
            service.settings.reading.acquire()  # as a thread does whose file system does not answer
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Supervision(manager, service).reload)
                await anyio.sleep(0.2)
                assert manager.told == ["reloading"]
                service.settings.reading.release()
            assert manager.told == ["reloading", "ready"]
            assert service.settings.config.runs.warn_pct == 61

    anyio.run(body)


def test_reload_whose_files_do_not_answer_ends_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with service_over(tmp_path) as (service, _source):
            manager = Recorded()
            service.settings.reading.acquire()
            await Supervision(manager, service, reload_seconds=0.2).reload()
            assert manager.told == ["reloading", "ready"]

    anyio.run(body)
    # On stdout, because structlog is not configured here.
    assert "configuration not reloaded: reading timed out" in capsys.readouterr().out


def configure_at(directory: Path, text: str) -> None:
    (directory / "config.toml").write_text(text)


def test_reader_that_goes_on_slowly_is_alive(tmp_path: Path) -> None:
    """What counts is how long ago it went a step forward, not how long a look at everything takes."""

    async def body() -> None:
        async with supervised(tmp_path) as (service, source, is_fed):
            source.hang()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(service.totals.standing, service.accounts.runs["r1"], within(30))
                while not service.totals.refresher.has_stalled(WATCHED / 2):  # noqa: ASYNC110  it comes by the clock
                    await anyio.sleep(0.01)
                service.totals.refresher.note_progress()  # as at the end of each piece of work
                assert await is_fed()
                source.resume()

    anyio.run(body)


def test_ledger_that_hangs_sends_no_sign_of_life_and_one_that_fails_does(tmp_path: Path) -> None:
    async def body() -> None:
        async with supervised(tmp_path) as (service, _source, is_fed):

            async def write() -> None:
                while True:
                    with suppress(LedgerError):  # when SQLite has waited for long enough
                        await service.lifecycle.start(messages.RunStart(id="r2", project_dir="/p"), within(30))

            ledger = sqlite3.connect(tmp_path / "ledger.db", PATIENCE, isolation_level=None, check_same_thread=False)
            with closing(ledger) as other:
                await anyio.to_thread.run_sync(other.execute, "BEGIN IMMEDIATE")  # after a write that is under way
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


def test_variables_of_the_manager_are_taken_out_of_the_environment() -> None:
    """Programs that the daemon starts must neither report for it nor think that sockets were passed to them."""
    environ = {
        "NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7",
        "LISTEN_PID": "8", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/",
    }  # fmt: skip
    manager = Manager.from_environment(environ, 7)
    assert (manager.address, manager.watchdog) == ("/n", 2.0)
    assert not passed_descriptors(environ, 7)
    assert environ == {"HOME": "/"}


def test_passed_descriptors_are_kept_from_children() -> None:
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
def test_watchdog_is_ours_only_when_it_says_so(microseconds: str, pid: str, seconds: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": microseconds, "WATCHDOG_PID": pid}
    assert Manager.from_environment(environ, 7).watchdog == seconds


def test_manager_that_reads_nothing_or_has_gone_holds_nothing_up(tmp_path: Path) -> None:
    async def body() -> None:
        await Manager(str(tmp_path / "nobody")).ready("x")
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


def test_passed_socket_is_served_and_left_where_it_is(home: Home, interstat: Interstat, told: Reports) -> None:
    daemon = home.start(prefix=activated(home))
    before = home.socket.stat().st_ino
    with Wire(home.socket) as wire:
        assert isinstance(wire.ask(messages.Ping()), messages.PingAnswer)
    assert daemon.stop() == 0
    assert home.socket.stat().st_ino == before
    assert stat.S_ISSOCK(home.socket.stat().st_mode)


def test_socket_decides_where_the_state_files_and_the_lock_are(
    home: Home, interstat: Interstat, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere" / "fluxbudget" / "other.sock"
    home.start(prefix=activation(elsewhere))
    assert not home.socket.exists()
    assert (elsewhere.parent / "other.sock.lock").exists()
    assert (elsewhere.parent / "state").is_dir()
    with Wire(elsewhere) as wire:
        assert isinstance(wire.ask(messages.Ping()), messages.PingAnswer)


def test_variables_meant_for_another_process_are_no_sockets(home: Home, interstat: Interstat) -> None:
    home.start(prefix=("env", "LISTEN_PID=1", "LISTEN_FDS=1"))
    assert isinstance(home.ask(messages.Ping()), messages.PingAnswer)


@pytest.mark.parametrize(
    ("arguments", "count", "code", "said"),
    [
        ((), 2, 1, "2 sockets were passed"),
        (("--socket", "/elsewhere/x.sock"), 1, 64, "--socket says /elsewhere/x.sock"),
    ],
)
def test_sockets_that_cannot_be_served(
    home: Home, arguments: tuple[str, ...], count: int, code: int, said: str
) -> None:
    daemon = home.start(*arguments, wait=False, prefix=activation(home.socket, count=count))
    assert daemon.process.wait(20) == code
    assert said in daemon.log


@pytest.mark.parametrize("what", ["file", "datagram", "internet", "connected", "abstract"])
def test_what_is_no_listening_socket_with_a_path_is_refused(what: str, tmp_path: Path) -> None:
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


def test_who_wakes_a_daemon_with_a_bad_configuration_is_told(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    daemon = home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    with woken(home.socket) as wire:
        answer = wire.ask(messages.Ping(), 20)
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "bad_config"
    assert answer.error.message.startswith(f"{place}: ")
    assert daemon.process.wait(20) == 78


def test_configuration_that_is_mended_at_once_is_served(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    with woken(home.socket) as wire:
        assert isinstance(wire.ask(messages.Ping(), 20), messages.ErrorAnswer)
    configure(home, "[runs]\nwarn_pct = 70\n")

    def is_served() -> bool:
        with Wire(home.socket) as wire:
            return isinstance(wire.ask(messages.Ping(), 20), messages.PingAnswer)

    wait_for(is_served, "the daemon to serve")


def test_who_wakes_a_second_daemon_is_told_who_holds_the_state(
    home: Home, interstat: Interstat, tmp_path: Path
) -> None:
    first = home.start()
    other = tmp_path / "other" / "fluxbudget" / "x.sock"
    second = home.start(wait=False, prefix=activation(other))
    with woken(other) as wire:
        answer = wire.ask(messages.Ping(), 20)
    assert isinstance(answer, messages.ErrorAnswer)
    assert answer.error.code == "unavailable"
    assert f"fluxbudgetd pid {first.process.pid}" in answer.error.message
    assert second.process.wait(20) == 1


def test_daemon_that_cannot_start_ends_at_once_if_no_client_waits(home: Home) -> None:
    place = configure(home, "[runs]\nwarn = 70\n")
    daemon = home.start("--config", str(place), wait=False, prefix=activation(home.socket))
    assert daemon.process.wait(20) == 78
    assert "warn is not a key" in daemon.log
