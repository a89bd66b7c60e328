"""The native client without the daemon: a marker of an exhausted hard limit makes it ask the Python client."""

import os
from pathlib import Path

import pytest

from harness import native
from harness.native import ANSWER, ANSWERED, JSON, PATIENT, SILENT, Native, handed
from harness.peer import Peer

pytestmark = native.marks


@pytest.fixture
def client(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Native:
    return Native(native.native_client(tmp_path_factory), tmp_path)


def mark(directory: Path, name: str = "r1") -> Path:
    """Leave a marker beside a socket in this directory."""
    marker = directory / "hard" / name
    marker.parent.mkdir(parents=True)
    marker.touch()
    return marker


def test_hook_with_a_marker_is_handed_on_with_its_input(client: Native) -> None:
    """Only a hook that got no answer looks for one."""
    mark(client.socket.parent)
    assert handed(client.run("hook", *PATIENT, stdin=JSON))[:3] == (["hook", *PATIENT], JSON, "connect 2")
    with client.answering(ANSWER):
        assert client.run("hook", *PATIENT, stdin=JSON) == ANSWERED
    with Peer(client.socket, lambda connection: len(list(connection.frames()))):
        assert handed(client.run("hook", stdin=JSON))[:3] == (["hook"], JSON, "timeout")
    with Peer(client.socket, lambda _: None):
        assert handed(client.run("hook", *PATIENT, stdin=JSON))[:3] == (["hook", *PATIENT], JSON, "closed")


def test_markers_are_found_at_each_place_of_the_daemon(client: Native, tmp_path: Path) -> None:
    """It looks at the usual place even if another was chosen, at that one, and at the one that the lock file names."""
    marker = mark(client.socket.parent)
    nowhere = {"FLUXBUDGET_SOCKET": "/nowhere/sock"}
    assert handed(client.run("hook", stdin=JSON, environ=nowhere)).stdin == JSON
    marker.unlink()
    assert client.run("hook", stdin=JSON, environ=nowhere) == SILENT
    elsewhere = tmp_path / "elsewhere"
    mark(elsewhere)
    for chosen in (str(elsewhere / "sock"), "elsewhere/sock"):
        assert handed(client.run("hook", stdin=JSON, environ={"FLUXBUDGET_SOCKET": chosen})).stdin == JSON
    mark(tmp_path, "beside")
    assert handed(client.run("hook", stdin=JSON, environ={"FLUXBUDGET_SOCKET": "sock"})).stdin == JSON
    assert client.run("hook", stdin=JSON) == SILENT
    client.socket.with_name("fluxbudgetd.sock.lock").write_text(f"fluxbudgetd pid 1\nsocket {elsewhere}/sock\n")
    assert handed(client.run("hook", stdin=JSON)).stdin == JSON


def test_longest_path_has_room_for_the_directory_of_markers(client: Native, tmp_path: Path) -> None:
    """A socket's path has at most 107 bytes, the last of which may be its whole name."""
    directory = "d" * 105
    chosen = {"FLUXBUDGET_SOCKET": f"{directory}/s"}
    assert client.run("hook", stdin=JSON, environ=chosen) == SILENT
    mark(tmp_path / directory)
    assert handed(client.run("hook", stdin=JSON, environ=chosen)).stdin == JSON


@pytest.mark.parametrize("what", ["missing", "empty", "a file", "a FIFO", "a temporary file", "not readable"])
def test_no_marker_means_silence(client: Native, what: str) -> None:
    directory = client.socket.parent / "hard"
    directory.parent.mkdir()
    if what == "a file":
        directory.touch()
    elif what == "a FIFO":
        os.mkfifo(directory)
    elif what != "missing":
        directory.mkdir(mode=0o300 if what == "not readable" else 0o700)
    if what == "a temporary file":
        (directory / ".fluxbudget-1").touch()
    assert client.run("hook", stdin=JSON) == SILENT


def test_one_marker_among_many_temporary_files_is_found(client: Native) -> None:
    marker = mark(client.socket.parent)
    marker.unlink()
    for number in range(300):
        (marker.parent / f".fluxbudget-{number:0200}").touch()
    marker.touch()
    assert handed(client.run("hook", stdin=JSON)).stdin == JSON
