"""Bubbles on a real session bus, shown by a real notification server; and everything that may be wrong with either."""

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.desktop import Bubble, Desktop, Urgency
from fluxbudgetd.notify.memory import Memory, Server
from harness.bus import PrivateBus, private_bus
from harness.daemon import wait_for

PATIENCE = 20.0
#: So long a bubble may take where it is known that nothing will come of it.
SHORT = 0.3


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as made:
        yield made


def desktop_at(address: str) -> Desktop:
    return Desktop({"DBUS_SESSION_BUS_ADDRESS": address}, os.getuid())


def bubble(title: str = "title", *, key: str = "r1", body: str = "body", urgency: Urgency = "normal") -> Bubble:
    return Bubble(key=key, title=title, body=body, urgency=urgency)


def tell(desktop: Desktop, *bubbles: Bubble, seconds: float = PATIENCE) -> None:
    async def body() -> None:
        for each in bubbles:
            await desktop.tell(each, seconds)

    anyio.run(body)


def refusal(desktop: Desktop, told: Bubble | None = None, seconds: float = PATIENCE) -> ChannelError:
    """Return why a bubble was not shown: always in a line that can be printed, with a hint."""
    with pytest.raises(ChannelError) as caught:
        tell(desktop, told or bubble(), seconds=seconds)
    error = caught.value
    assert error.message.isprintable()
    assert error.hint
    assert error.hint.isprintable()
    return error


def delivering() -> bool:
    return any("AnyIO worker" in thread.name for thread in threading.enumerate())


def open_files() -> list[str]:
    """Return what the process has open, without the directory that is read for it."""
    gc.collect()
    found = []
    for entry in os.listdir("/proc/self/fd"):
        path = Path(f"/proc/self/fd/{entry}")
        if path.is_symlink():
            found.append(str(path.readlink()).partition(":")[0])
    return sorted(found)


@pytest.mark.parametrize(
    ("urgency", "number", "icon"),
    [("low", 0, "dialog-information"), ("normal", 1, "dialog-warning"), ("critical", 2, "dialog-error")],
)
def test_bubble_is_shown_once(bus: PrivateBus, urgency: Urgency, number: int, icon: str) -> None:
    server = bus.serve()
    tell(desktop_at(bus.address), bubble("80 % used", body="of r1\nsecond line", urgency=urgency))
    assert server.shown == [
        {
            "id": 1,
            "replaces_id": 0,
            "app_name": "fluxbudget",
            "app_icon": icon,
            "summary": "80 % used",
            "body": "of r1\nsecond line",
            "actions": [],
            "hints": {"urgency": number},
            "urgency": number,
            "expire_timeout": -1,
        }
    ]


def test_only_bubbles_with_one_key_replace_each_other(bus: PrivateBus) -> None:
    server = bus.serve()
    keys = ["a", "b", "a", "b", "c"]
    tell(desktop_at(bus.address), *(bubble(key=key) for key in keys))
    assert [(each["id"], each["replaces_id"]) for each in server.shown] == [(1, 0), (2, 0), (1, 1), (2, 2), (3, 0)]


def test_bubbles_told_at_once_are_shown_one_after_the_other(bus: PrivateBus) -> None:
    server = bus.serve()
    desktop = desktop_at(bus.address)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(desktop.tell, bubble(), PATIENCE)

    anyio.run(body)
    assert [each["replaces_id"] for each in server.shown] == [0, 1, 1, 1, 1]


def test_other_notification_server_is_not_asked_to_replace(bus: PrivateBus) -> None:
    """An id of the old server's means another program's notification to the new one."""
    desktop = desktop_at(bus.address)
    first = bus.serve()
    tell(desktop, bubble(), bubble())
    first.stop()
    second = bus.serve()
    tell(desktop, bubble(), bubble())
    assert [each["replaces_id"] for each in second.shown] == [0, 1]


def test_bus_that_dies_and_comes_back(bus: PrivateBus) -> None:
    """The servers of both buses have the same unique name; they are told from each other by their buses."""
    desktop = desktop_at(bus.address)
    bus.serve()
    tell(desktop, bubble())
    bus.stop()
    error = refusal(desktop)
    assert not error.resting
    assert error.message == "the session bus cannot be reached: No such file or directory"
    bus.start()
    server = bus.serve()
    tell(desktop, bubble())
    assert [each["replaces_id"] for each in server.shown] == [0]


@pytest.mark.parametrize("directory", ["run", "a b~,;=%41é"])
def test_bus_in_the_runtime_directory(bus: PrivateBus, tmp_path: Path, directory: str) -> None:
    """It needs no address; a runtime directory without one means that there is no bus, and nobody's fault."""
    runtime = tmp_path / directory
    runtime.mkdir()
    desktop = Desktop({"XDG_RUNTIME_DIR": str(runtime), "DBUS_SESSION_BUS_ADDRESS": ""}, os.getuid())
    error = refusal(desktop)
    assert error.resting
    assert error.message == "there is no session bus"
    (runtime / "bus").symlink_to(bus.socket)
    server = bus.serve()
    tell(desktop, bubble())
    assert len(server.shown) == 1


def test_runtime_directory_that_is_not_absolute_is_ignored(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bus.socket.parent)
    assert refusal(Desktop({"XDG_RUNTIME_DIR": "."}, 4_000_000_000)).message == "there is no session bus"


def test_bus_on_which_nobody_shows_notifications(bus: PrivateBus) -> None:
    desktop = desktop_at(bus.address)
    error = refusal(desktop)
    assert error.resting
    assert error.message == "nobody on the session bus shows notifications"
    server = bus.serve()
    tell(desktop, bubble())
    assert len(server.shown) == 1


def test_server_that_hangs_costs_one_bubble(bus: PrivateBus) -> None:
    server = bus.serve("--hang", "1")
    desktop = desktop_at(bus.address)

    async def body() -> None:
        await desktop.tell(bubble("never answered"), 3.0)  # it has to reach the server, whatever else is going on

    with pytest.raises(ChannelError, match="notification server did not answer in time") as caught:
        anyio.run(body)
    assert not caught.value.resting
    tell(desktop, bubble("answered"))
    wait_for(lambda: len(server.shown) == 2, "both bubbles")
    assert [each["summary"] for each in server.shown] == ["never answered", "answered"]


def test_server_that_was_asked_is_the_one_that_is_told(bus: PrivateBus) -> None:
    """Ids and markup are that server's: whoever gets its name in between would misunderstand them."""
    server = bus.serve("--leave")
    desktop = desktop_at(bus.address)
    tell(desktop, bubble())
    assert len(server.shown) == 1
    assert refusal(desktop).resting


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--refuse",
            r"the notification server refused Notify: org.freedesktop.Error.Refused: no more\nof that\x1b[2J",
        ),
        ("--odd", "an answer of the notification server is of another kind than specified: s"),
    ],
)
def test_server_that_answers_otherwise(bus: PrivateBus, option: str, message: str) -> None:
    bus.serve(option)
    error = refusal(desktop_at(bus.address))
    assert (error.message, error.resting) == (message, False)


@pytest.mark.parametrize(
    "address",
    [
        "garbage",
        "unix:",
        "unix:path",
        "disabled:",
        "autolaunch:",
        "tcp:host=localhost,port=x",
        "\x1b",
    ],
)
def test_address_that_is_none(address: str) -> None:
    error = refusal(desktop_at(address))
    assert not error.resting
    assert error.message.startswith("the session bus's address is no address that can be connected to: ")
    assert error.hint == "look at $DBUS_SESSION_BUS_ADDRESS"


@contextmanager
def false_bus(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Desktop]:
    """Something else at the bus's address, that answers in its own way."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            try:
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        serve(peer)
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield desktop_at(f"unix:path={path}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=60)
        assert not thread.is_alive()


def heard(peer: socket.socket, what: bytes | None = None) -> None:
    """Read until that was said; without it, until the other side has closed its end."""
    said = b""
    while what is None or what not in said:
        data = peer.recv(65536)
        if not data:
            return
        said += data


@pytest.mark.parametrize(
    ("auth", "then", "message"),
    [
        (b"", b"", "the session bus did not answer in time"),
        (b"OK 00\r\n", b"", "the session bus did not answer in time"),
        (b"REJECTED EXTERNAL\r\n", b"", "the session bus lets nobody in: authentication failed: REJECTED"),
        (b"HTTP/1.1 400\x1b\r\n", b"", "the session bus lets nobody in: authentication failed: unknown response"),
        (b"\xff\r\n", b"", "the session bus says what is not D-Bus: "),
        (b"x" * 100_000, b"", "the session bus lets nobody in: auth line exceeded maximum size"),
        (b"OK 00\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", "the session bus says what is not D-Bus: "),
        (b"OK 00\r\n", b"\0" * 1000, "the session bus says what is not D-Bus: "),
        (b"OK 00\r\n", b"l\2\1\1\xff\xff\xff\xff\1\0\0\0\xff\xff\xff\xff", "the session bus says what is not D-Bus: "),
    ],
)
def test_something_else_at_the_address(tmp_path: Path, auth: bytes, then: bytes, message: str) -> None:
    """Whatever it says or does not say: an error in time, and the connection is closed."""

    def serve(peer: socket.socket) -> None:
        heard(peer, b"AUTH EXTERNAL")
        with suppress(OSError):  # nobody has to listen to the end
            peer.sendall(auth)
            if then:
                heard(peer, b"BEGIN\r\n")
                peer.sendall(then)
            heard(peer)
        served.append(True)

    served: list[bool] = []
    with false_bus(tmp_path / "bus", serve) as desktop:
        error = refusal(desktop, seconds=1.0 if "in time" in message else PATIENCE)
        assert error.message.startswith(message), error.message
        assert not error.resting
        wait_for(lambda: served, "the connection's end")


def test_connection_that_is_closed_at_once(tmp_path: Path) -> None:
    with false_bus(tmp_path / "bus", lambda _peer: None) as desktop:
        assert not refusal(desktop).resting


def test_connection_that_is_closed_later(tmp_path: Path) -> None:
    def serve(peer: socket.socket) -> None:
        heard(peer, b"AUTH EXTERNAL")
        peer.sendall(b"OK 00\r\n")
        heard(peer, b"Hello")
        peer.shutdown(socket.SHUT_WR)
        heard(peer)

    with false_bus(tmp_path / "bus", serve) as desktop:
        error = refusal(desktop)
    assert (error.message, error.resting) == ("the session bus closed the connection", False)


def test_listener_that_accepts_nobody(tmp_path: Path) -> None:
    """Its queue is full, so that not even connecting comes to an end."""
    path = tmp_path / "bus"
    waiting = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with pytest.raises(BlockingIOError):  # noqa: PT012  the one that finds the queue full
            while True:
                peer = socket.socket(socket.AF_UNIX)
                waiting.append(peer)
                peer.setblocking(False)
                peer.connect(str(path))
        assert not refusal(desktop_at(f"unix:path={path}"), seconds=SHORT).resting
        for peer in waiting:
            peer.close()


def test_address_is_shown_as_one_short_line() -> None:
    error = refusal(desktop_at("unix:path=/no/where,guid=" + "0" * 1000))
    assert error.hint.startswith("is it running? Its address is unix:path=/no/where,guid=0")
    assert len(error.hint) < 300


def test_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "bus"))
        error = refusal(desktop_at(f"unix:path={tmp_path}/bus"))
    assert (error.message, error.resting) == ("the session bus cannot be reached: Connection refused", False)


def test_what_looks_like_markup_is_shown_as_it_is(bus: PrivateBus) -> None:
    server = bus.serve()
    tell(desktop_at(bus.address), bubble("<b>&</b>", body="<a href='x'>&amp;</a>"))
    assert server.shown[0]["summary"] == "<b>&</b>"  # a title is never markup
    assert server.shown[0]["body"] == "&lt;a href='x'&gt;&amp;amp;&lt;/a&gt;"


def test_server_without_markup_gets_plain_text(bus: PrivateBus) -> None:
    server = bus.serve("--plain")
    tell(desktop_at(bus.address), bubble(body="<b>&</b>"))
    assert server.shown[0]["body"] == "<b>&</b>"


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("a\nb\r\n\tc", r"a\nb\r\n\tc", "a\nb\\r\n\\tc"),
        ("a\0b\x1b[2J\x7f\x9b", r"a\x00b\x1b[2J\x7f\x9b", r"a\x00b\x1b[2J\x7f\x9b"),
        ("a\ud800b\udcff", r"a\ud800b\udcff", r"a\ud800b\udcff"),
        ("a\uef80b\ue000", r"a\x80b\ue000", r"a\x80b\ue000"),  # a folded foreign byte, and another private one
        ("\u202eleft\ufeff", r"\u202eleft\ufeff", r"\u202eleft\ufeff"),
        # Short ids: pytest has a test's id in its environment, which has to fit into a process's.
        pytest.param("é" * 100_000, "é" * 199 + "…", "é" * 999 + "…", id="long"),
        pytest.param("\0" * 100_000, (r"\x00" * 50)[:199] + "…", (r"\x00" * 250)[:999] + "…", id="long-escaped"),
        ("", "", ""),
    ],
)
def test_hostile_text_is_written_out_and_cut(bus: PrivateBus, text: str, title: str, body: str) -> None:
    server = bus.serve()
    tell(desktop_at(bus.address), bubble(text, key=text, body=text))
    assert (server.shown[0]["summary"], server.shown[0]["body"]) == (title, body)


def test_cutting_never_halves_what_is_escaped(bus: PrivateBus) -> None:
    server = bus.serve()
    tell(desktop_at(bus.address), bubble(body="<" * 2000))
    assert server.shown[0]["body"] == "&lt;" * 999 + "…"


def test_cancelled_delivery_leaves_nothing_behind(bus: PrivateBus) -> None:
    """It does not even wait for its deadline; and the next one is delivered."""
    server = bus.serve("--hang", "1")
    desktop = desktop_at(bus.address)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desktop.tell, bubble("cancelled"), 3600)
            await anyio.to_thread.run_sync(lambda: wait_for(lambda: server.shown, "the bubble"))
            tasks.cancel_scope.cancel()
        await desktop.tell(bubble("next"), PATIENCE)

    before = open_files()
    anyio.run(body)
    wait_for(lambda: not delivering(), "the worker threads to end")
    assert open_files() == before
    assert [each["summary"] for each in server.shown] == ["cancelled", "next"]


def test_nothing_is_left_open(bus: PrivateBus, tmp_path: Path) -> None:
    """Neither when bubbles are shown, nor when they are refused, nor when nobody answers."""
    server = bus.serve()
    shown = desktop_at(bus.address)
    tell(shown, bubble())
    before = open_files()
    tell(shown, *[bubble()] * 50)
    server.stop()
    bus.serve("--refuse")
    for _ in range(5):
        refusal(shown)
    bus.stop()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        silent = desktop_at(f"unix:path={tmp_path}/deaf")
        for _ in range(3):
            refusal(silent, seconds=0.05)
    for _ in range(5):
        refusal(shown)
    wait_for(lambda: not delivering(), "the worker threads to end")
    assert open_files() == before


class HangingDesktop(Desktop):
    """Looks for the bus only while it is let: a file system that does not answer cannot be had for real."""

    def __init__(self, address: str) -> None:
        super().__init__({"DBUS_SESSION_BUS_ADDRESS": address}, os.getuid())
        self.let = threading.Event()
        self.looks = 0

    def _address(self) -> str:
        self.looks += 1
        self.let.wait(timeout=60)
        return super()._address()


def test_thread_that_hangs_is_given_up_on(bus: PrivateBus) -> None:
    """Whoever tells next hears so at once, and no other thread is lost to it; when it goes on, so does the channel."""
    server = bus.serve()
    desktop = HangingDesktop(bus.address)
    message = "^a notification is under way and does not come to an end$"

    async def body() -> None:
        with pytest.raises(ChannelError, match=message):
            await desktop.tell(bubble("hung"), 0.05)
        threads = threading.active_count()
        for _ in range(5):
            with pytest.raises(ChannelError, match=message), anyio.fail_after(PATIENCE):
                await desktop.tell(bubble("refused"), 3600)
        assert (threading.active_count(), desktop.looks) == (threads, 1)
        desktop.let.set()
        await anyio.to_thread.run_sync(lambda: wait_for(lambda: desktop._current is None, "its end"))  # noqa: SLF001  nothing else shows it
        await desktop.tell(bubble("next"), PATIENCE)

    anyio.run(body)
    assert [each["summary"] for each in server.shown] == ["next"]


SNIPPET = """
import logging, os, sys
sys.argv[1:] = ["--version"]
sys.path.insert(0, {tests!r})
from harness import watched_daemon
from fluxbudgetd.notify.desktop import Bubble, Desktop
import anyio
try:
    watched_daemon.watched()
except SystemExit:
    pass
desktop = Desktop({{"XDG_RUNTIME_DIR": {runtime!r}}}, os.getuid())
async def main():
    await desktop.tell(Bubble(key="k", title="watched", body="b", urgency="low"), 20)
assert "dbus_fast" not in sys.modules
anyio.run(main)
assert "dbus_fast" in sys.modules
logging.getLogger("dbus_fast.aio").warning("what is raised, too, is no line of the daemon's log")
print("told", flush=True)
os._exit(0)
"""


def test_loop_is_never_blocked_and_dbus_is_imported_late(bus: PrivateBus) -> None:
    """In a process of its own, under the detector of the daemon's tests."""
    server = bus.serve()
    code = SNIPPET.format(tests=str(Path(__file__).parent), runtime=str(bus.socket.parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("told\n"), result
    assert result.stderr == ""
    assert [each["summary"] for each in server.shown] == ["watched"]


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = Memory()
    server = Server("bus", ":1.1")
    for number in range(1, 1001):
        memory.keep(f"k{number}", server, number)
    memory.keep("k1", server, 5000)
    memory.keep("another", server, 6000)
    assert [memory.id_of(key, server) for key in ("k1", "k2", "k3", "another")] == [5000, 0, 3, 6000]
    assert memory.id_of("k3", Server("another bus", ":1.1")) == 0
