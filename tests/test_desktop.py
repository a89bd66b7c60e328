"""Bubbles on a real session bus with a real notification server, and what can go wrong with both."""

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
from fluxbudgetd.notify.shown_bubbles import NotificationServer, ShownBubbles
from harness.bus import PrivateBus, private_bus
from harness.daemon import wait_for

PATIENCE = 20.0
#: Time limit, in seconds, of a bubble that is known to fail.
SHORT = 0.3


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    with private_bus(tmp_path) as made:
        yield made


def desktop_at(address: str) -> Desktop:
    return Desktop({"DBUS_SESSION_BUS_ADDRESS": address}, os.getuid())


def bubble(title: str = "title", *, key: str = "r1", body: str = "body", urgency: Urgency = "normal") -> Bubble:
    return Bubble(key=key, title=title, body=body, urgency=urgency)


def show(desktop: Desktop, *bubbles: Bubble, seconds: float = PATIENCE) -> None:
    async def body() -> None:
        for each in bubbles:
            await desktop.show(each, seconds)

    anyio.run(body)


def refusal(desktop: Desktop, shown: Bubble | None = None, seconds: float = PATIENCE) -> ChannelError:
    """Return the error of a bubble that is not shown; fail unless it is printable and has a hint."""
    with pytest.raises(ChannelError) as caught:
        show(desktop, shown or bubble(), seconds=seconds)
    error = caught.value
    assert error.message.isprintable()
    assert error.hint
    assert error.hint.isprintable()
    return error


def is_delivering() -> bool:
    """True if a worker thread is running."""
    return any("AnyIO worker" in thread.name for thread in threading.enumerate())


def open_files() -> list[str]:
    """Return the open files of this process, without the directory that lists them."""
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
    show(desktop_at(bus.address), bubble("80 % used", body="of r1\nsecond line", urgency=urgency))
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
    show(desktop_at(bus.address), *(bubble(key=key) for key in keys))
    assert [(each["id"], each["replaces_id"]) for each in server.shown] == [(1, 0), (2, 0), (1, 1), (2, 2), (3, 0)]


def test_concurrent_bubbles_are_shown_one_after_the_other(bus: PrivateBus) -> None:
    server = bus.serve()
    desktop = desktop_at(bus.address)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(desktop.show, bubble(), PATIENCE)

    anyio.run(body)
    assert [each["replaces_id"] for each in server.shown] == [0, 1, 1, 1, 1]


def test_other_notification_server_is_not_asked_to_replace(bus: PrivateBus) -> None:
    """The old server's id could belong to another program's notification."""
    desktop = desktop_at(bus.address)
    first = bus.serve()
    show(desktop, bubble(), bubble())
    first.stop()
    second = bus.serve()
    show(desktop, bubble(), bubble())
    assert [each["replaces_id"] for each in second.shown] == [0, 1]


def test_bus_that_dies_and_comes_back(bus: PrivateBus) -> None:
    """The servers of both buses have the same unique name, but the buses differ."""
    desktop = desktop_at(bus.address)
    bus.serve()
    show(desktop, bubble())
    bus.stop()
    error = refusal(desktop)
    assert not error.resting
    assert error.message == "the session bus cannot be reached: No such file or directory"
    bus.start()
    server = bus.serve()
    show(desktop, bubble())
    assert [each["replaces_id"] for each in server.shown] == [0]


@pytest.mark.parametrize("directory", ["run", "a b~,;=%41é"])
def test_bus_in_the_runtime_directory(bus: PrivateBus, tmp_path: Path, directory: str) -> None:
    """The bus is found there if the environment has no address. A missing bus is not a fault."""
    runtime = tmp_path / directory
    runtime.mkdir()
    desktop = Desktop({"XDG_RUNTIME_DIR": str(runtime), "DBUS_SESSION_BUS_ADDRESS": ""}, os.getuid())
    error = refusal(desktop)
    assert error.resting
    assert error.message == "there is no session bus"
    (runtime / "bus").symlink_to(bus.socket)
    server = bus.serve()
    show(desktop, bubble())
    assert len(server.shown) == 1


def test_runtime_directory_that_is_not_absolute_is_ignored(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bus.socket.parent)
    assert refusal(Desktop({"XDG_RUNTIME_DIR": "."}, 4_000_000_000)).message == "there is no session bus"


def test_bus_without_a_notification_server(bus: PrivateBus) -> None:
    desktop = desktop_at(bus.address)
    error = refusal(desktop)
    assert error.resting
    assert error.message == "no notification server is on the session bus"
    server = bus.serve()
    show(desktop, bubble())
    assert len(server.shown) == 1


def test_hanging_server_costs_one_bubble(bus: PrivateBus) -> None:
    server = bus.serve("--hang", "1")
    desktop = desktop_at(bus.address)

    async def body() -> None:
        await desktop.show(bubble("never answered"), 3.0)  # it must reach the server even on a busy machine

    with pytest.raises(ChannelError, match="notification server did not answer in time") as caught:
        anyio.run(body)
    assert not caught.value.resting
    show(desktop, bubble("answered"))
    wait_for(lambda: len(server.shown) == 2, "both bubbles")
    assert [each["summary"] for each in server.shown] == ["never answered", "answered"]


def test_bubble_goes_to_the_server_that_was_queried(bus: PrivateBus) -> None:
    """Ids and markup are that server's. Another one that takes its name in between would misread them."""
    server = bus.serve("--leave")
    desktop = desktop_at(bus.address)
    show(desktop, bubble())
    assert len(server.shown) == 1
    assert refusal(desktop).resting


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--refuse",
            r"the notification server refused Notify: org.freedesktop.Error.Refused: no more\nof that\x1b[2J",
        ),
        ("--odd", "the notification server gave an answer of the wrong type: s"),
    ],
)
def test_server_with_an_unexpected_answer(bus: PrivateBus, option: str, message: str) -> None:
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
def test_invalid_address(address: str) -> None:
    error = refusal(desktop_at(address))
    assert not error.resting
    assert error.message.startswith("the session bus's address is not a valid D-Bus address: ")
    assert error.hint == "check $DBUS_SESSION_BUS_ADDRESS"


@contextmanager
def false_bus(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Desktop]:
    """Serve something else at the bus's address."""
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


def read_until(peer: socket.socket, what: bytes | None = None) -> None:
    """Read until these bytes have arrived; without any, until the other side closes its end."""
    received = b""
    while what is None or what not in received:
        data = peer.recv(65536)
        if not data:
            return
        received += data


@pytest.mark.parametrize(
    ("auth", "then", "message"),
    [
        (b"", b"", "the session bus did not answer in time"),
        (b"OK 00\r\n", b"", "the session bus did not answer in time"),
        (b"REJECTED EXTERNAL\r\n", b"", "the session bus refused the connection: authentication failed: REJECTED"),
        (
            b"HTTP/1.1 400\x1b\r\n",
            b"",
            "the session bus refused the connection: authentication failed: unknown response",
        ),
        (b"\xff\r\n", b"", "the session bus sent something that is not D-Bus: "),
        (b"x" * 100_000, b"", "the session bus refused the connection: auth line exceeded maximum size"),
        (b"OK 00\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", "the session bus sent something that is not D-Bus: "),
        (b"OK 00\r\n", b"\0" * 1000, "the session bus sent something that is not D-Bus: "),
        (
            b"OK 00\r\n",
            b"l\2\1\1\xff\xff\xff\xff\1\0\0\0\xff\xff\xff\xff",
            "the session bus sent something that is not D-Bus: ",
        ),
    ],
)
def test_address_of_something_that_is_not_a_bus(tmp_path: Path, auth: bytes, then: bytes, message: str) -> None:
    """Whatever it sends, the channel reports an error in time and closes the connection."""

    def serve(peer: socket.socket) -> None:
        read_until(peer, b"AUTH EXTERNAL")
        with suppress(OSError):  # the client may close before the end
            peer.sendall(auth)
            if then:
                read_until(peer, b"BEGIN\r\n")
                peer.sendall(then)
            read_until(peer)
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
        read_until(peer, b"AUTH EXTERNAL")
        peer.sendall(b"OK 00\r\n")
        read_until(peer, b"Hello")
        peer.shutdown(socket.SHUT_WR)
        read_until(peer)

    with false_bus(tmp_path / "bus", serve) as desktop:
        error = refusal(desktop)
    assert (error.message, error.resting) == ("the session bus closed the connection", False)


def test_listener_that_accepts_no_connection(tmp_path: Path) -> None:
    """Its backlog is full, so that connect() blocks."""
    path = tmp_path / "bus"
    waiting = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with pytest.raises(BlockingIOError):  # noqa: PT012  one of these connections finds the backlog full
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
    assert error.hint.startswith("check that it is running; its address is unix:path=/no/where,guid=0")
    assert len(error.hint) < 300


def test_socket_without_a_listener(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "bus"))
        error = refusal(desktop_at(f"unix:path={tmp_path}/bus"))
    assert (error.message, error.resting) == ("the session bus cannot be reached: Connection refused", False)


def test_markup_in_text_is_escaped(bus: PrivateBus) -> None:
    server = bus.serve()
    show(desktop_at(bus.address), bubble("<b>&</b>", body="<a href='x'>&amp;</a>"))
    assert server.shown[0]["summary"] == "<b>&</b>"  # a title has no markup
    assert server.shown[0]["body"] == "&lt;a href='x'&gt;&amp;amp;&lt;/a&gt;"


def test_server_without_markup_gets_plain_text(bus: PrivateBus) -> None:
    server = bus.serve("--plain")
    show(desktop_at(bus.address), bubble(body="<b>&</b>"))
    assert server.shown[0]["body"] == "<b>&</b>"


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("a\nb\r\n\tc", r"a\nb\r\n\tc", "a\nb\\r\n\\tc"),
        ("a\0b\x1b[2J\x7f\x9b", r"a\x00b\x1b[2J\x7f\x9b", r"a\x00b\x1b[2J\x7f\x9b"),
        ("a\ud800b\udcff", r"a\ud800b\udcff", r"a\ud800b\udcff"),
        ("a\uef80b\ue000", r"a\x80b\ue000", r"a\x80b\ue000"),  # a folded foreign byte, and another private one
        ("\u202eleft\ufeff", r"\u202eleft\ufeff", r"\u202eleft\ufeff"),
        # Short ids: pytest puts the id into the environment, whose size is limited.
        pytest.param("é" * 100_000, "é" * 199 + "…", "é" * 999 + "…", id="long"),
        pytest.param("\0" * 100_000, (r"\x00" * 50)[:199] + "…", (r"\x00" * 250)[:999] + "…", id="long-escaped"),
        ("", "", ""),
    ],
)
def test_control_characters_are_escaped_and_long_text_is_cut(bus: PrivateBus, text: str, title: str, body: str) -> None:
    server = bus.serve()
    show(desktop_at(bus.address), bubble(text, key=text, body=text))
    assert (server.shown[0]["summary"], server.shown[0]["body"]) == (title, body)


def test_escapes_are_never_cut_in_half(bus: PrivateBus) -> None:
    server = bus.serve()
    show(desktop_at(bus.address), bubble(body="<" * 2000))
    assert server.shown[0]["body"] == "&lt;" * 999 + "…"


def test_cancelled_bubble_leaves_nothing_open(bus: PrivateBus) -> None:
    """Cancelling ends it before its deadline, and the next bubble is shown."""
    server = bus.serve("--hang", "1")
    desktop = desktop_at(bus.address)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desktop.show, bubble("cancelled"), 3600)
            await anyio.to_thread.run_sync(lambda: wait_for(lambda: server.shown, "the bubble"))
            tasks.cancel_scope.cancel()
        await desktop.show(bubble("next"), PATIENCE)

    before = open_files()
    anyio.run(body)
    wait_for(lambda: not is_delivering(), "the worker threads to end")
    assert open_files() == before
    assert [each["summary"] for each in server.shown] == ["cancelled", "next"]


def test_nothing_is_left_open(bus: PrivateBus, tmp_path: Path) -> None:
    """This holds for bubbles that are shown, refused or never answered."""
    server = bus.serve()
    shown = desktop_at(bus.address)
    show(shown, bubble())
    before = open_files()
    show(shown, *[bubble()] * 50)
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
    wait_for(lambda: not is_delivering(), "the worker threads to end")
    assert open_files() == before


def test_hanging_thread_is_abandoned(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next bubbles fail at once without another thread. When the thread continues, so does the channel."""
    server = bus.serve()
    desktop = Desktop({"XDG_RUNTIME_DIR": str(bus.socket.parent)}, os.getuid())
    message = "^an earlier notification hangs$"
    released = threading.Event()
    lookups = []
    exists = os.path.exists

    def hanging(path: str) -> bool:
        if path == str(bus.socket):
            lookups.append(path)
            released.wait(timeout=60)
        return exists(path)

    # A hanging file system cannot be made here, so the call that looks for the bus is replaced.
    monkeypatch.setattr(os.path, "exists", hanging)

    async def body() -> None:
        with pytest.raises(ChannelError, match=message):
            await desktop.show(bubble("hung"), 0.05)
        threads = threading.active_count()
        for _ in range(5):
            with pytest.raises(ChannelError, match=message), anyio.fail_after(PATIENCE):
                await desktop.show(bubble("refused"), 3600)
        assert (threading.active_count(), len(lookups)) == (threads, 1)
        released.set()
        with anyio.fail_after(PATIENCE):
            while not server.shown:
                with suppress(ChannelError):
                    await desktop.show(bubble("next"), PATIENCE)

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
    await desktop.show(Bubble(key="k", title="watched", body="b", urgency="low"), 20)
assert "dbus_fast" not in sys.modules
anyio.run(main)
assert "dbus_fast" in sys.modules
logging.getLogger("dbus_fast.aio").warning("errors are raised, so dbus_fast's own log is not needed")
print("shown", flush=True)
os._exit(0)
"""


def test_loop_is_not_blocked_and_dbus_fast_is_imported_late(bus: PrivateBus) -> None:
    """A separate process runs the channel under the detector of blocking calls."""
    server = bus.serve()
    code = SNIPPET.format(tests=str(Path(__file__).parent), runtime=str(bus.socket.parent))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("shown\n"), result
    assert result.stderr == ""
    assert [each["summary"] for each in server.shown] == ["watched"]


def test_only_the_latest_thousand_bubbles_are_remembered() -> None:
    shown = ShownBubbles()
    server = NotificationServer("bus", ":1.1")
    for number in range(1, 1001):
        shown.remember(f"k{number}", server, number)
    shown.remember("k1", server, 5000)
    shown.remember("another", server, 6000)
    assert [shown.id_of(key, server) for key in ("k1", "k2", "k3", "another")] == [5000, 0, 3, 6000]
    assert shown.id_of("k3", NotificationServer("another bus", ":1.1")) == 0
