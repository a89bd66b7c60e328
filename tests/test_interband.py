"""Interband's files: contents, names, permissions, and when they are removed."""

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.interband import Alert, Interband, file_name
from harness.privilege import OBEDIENT

AT = 1_771_606_055_999_999
DAY = 24 * 3600


def put(root: Path | str, alerts: Sequence[Alert] = (), gone: Sequence[str] = (), at: int = AT) -> None:
    anyio.run(Interband(str(root)).put, alerts, gone, at)


def place(root: Path) -> Path:
    return root / "interstat" / "budget"


def names(root: Path) -> list[str]:
    return sorted(os.listdir(place(root)))


def aged(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    when = AT / 1e6 - seconds
    os.utime(path, (when, when))


def test_file_is_what_the_reader_expects(tmp_path: Path) -> None:
    put(tmp_path, [Alert("s-1", 83.4, 208_500)])
    assert (place(tmp_path) / "s-1.json").read_bytes() == (
        b'{"version":"1.0.0","namespace":"interstat","type":"budget_alert","session_id":"s-1",'
        b'"timestamp":"2026-02-20T16:47:35Z","payload":{"pct_consumed":83.4,"total_tokens":208500,'
        b'"session_id":"s-1","ts":1771606055}}'
    )
    assert names(tmp_path) == ["s-1.json"], "nothing temporary is left"


@pytest.mark.parametrize(("pct", "written"), [(-1.0, 0.0), (0.0, 0.0), (100.0, 100.0), (100.1, 100.0), (4e9, 100.0)])
def test_percentage_is_in_the_readers_range(tmp_path: Path, pct: float, written: float) -> None:
    put(tmp_path, [Alert("s", pct, 1)])
    assert json.loads((place(tmp_path) / "s.json").read_text())["payload"]["pct_consumed"] == written


@pytest.mark.parametrize(
    ("session", "name"),
    [
        ("Ab.c_1-2", "Ab.c_1-2.json"),
        ("a/b c:é☃", "a_b_c___.json"),
        ("../../etc/passwd", "_._.._etc_passwd.json"),
        ("..", "_..json"),
        (".", "_.json"),
        ("", "_.json"),
        ("a\0\n", "a__.json"),
        ("x" * 300, "x" * 200 + ".json"),
        (".hidden", "_hidden.json"),
        ("\ud800\uef80", "__.json"),
    ],
)
def test_file_is_named_after_the_session_and_stays_in_its_directory(session: str, name: str) -> None:
    assert file_name(session) == name


@given(st.text())
def test_file_names_are_never_hidden_outside_or_too_long(session: str) -> None:
    name = file_name(session)
    assert name.isascii()
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= 255


def test_directories_and_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        put(tmp_path / "new" / "root", [Alert("s", 1, 1)])
    finally:
        os.umask(before)
    for directory in (tmp_path / "new", tmp_path / "new" / "root", place(tmp_path / "new" / "root")):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((place(tmp_path / "new" / "root") / "s.json").stat().st_mode) == 0o600


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put("~/.interband", [Alert("s", 1, 1)])
    assert names(tmp_path / ".interband") == ["s.json"]


@pytest.mark.parametrize("root", ["", "relative", "~nobody-of-that-name/x", "/a\0b"])
def test_invalid_root_is_refused(root: str) -> None:
    with pytest.raises(ChannelError, match="is not absolute") as raised:
        put(root, [Alert("s", 1, 1)])
    assert raised.value.hint


def test_removing_files_that_may_be_missing(tmp_path: Path) -> None:
    put(tmp_path, [Alert("a", 1, 1), Alert("b", 1, 1)])
    put(tmp_path, [], ["a", "missing"])
    assert names(tmp_path) == ["b.json"]


def test_file_shared_with_a_removed_session_is_kept(tmp_path: Path) -> None:
    put(tmp_path, [Alert("a/b", 1, 1)], ["a:b"])
    assert names(tmp_path) == ["a_b.json"]


def test_directory_is_only_made_for_a_file(tmp_path: Path) -> None:
    put(tmp_path, [], ["a"])
    assert not (tmp_path / "interstat").exists()


def test_only_old_files_are_removed(tmp_path: Path) -> None:
    directory = place(tmp_path)
    aged(directory / "week.json", 7 * DAY + 10)
    aged(directory / "young.json", 7 * DAY - 10)
    aged(directory / "week.txt", 70 * DAY)
    aged(directory / ".fluxbudget-left", 3610)
    aged(directory / ".fluxbudget-now", 3590)
    aged(directory / ".another-s", 70 * DAY)
    (directory / "directory.json").mkdir()
    os.utime(directory / "directory.json", (0, 0))
    (directory / "link.json").symlink_to(tmp_path / "nowhere")
    os.utime(directory / "link.json", (0, 0), follow_symlinks=False)
    put(tmp_path)
    assert names(tmp_path) == [".another-s", ".fluxbudget-now", "directory.json", "week.txt", "young.json"]


def test_symlink_to_the_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    put(tmp_path / "root", [Alert("s", 1, 1)])
    assert names(tmp_path / "real") == ["s.json"]


def test_symlink_in_a_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    place(tmp_path).mkdir(parents=True)
    for name in ("a.json", "b.json"):
        (place(tmp_path) / name).symlink_to(victim)
    put(tmp_path, [Alert("a", 1, 1)], ["b"])
    assert victim.read_text() == "untouched"
    assert names(tmp_path) == ["a.json"]
    assert not (place(tmp_path) / "a.json").is_symlink()


def test_directory_in_a_files_place_is_reported_and_the_others_are_written(tmp_path: Path) -> None:
    (place(tmp_path) / "b.json" / "kept").mkdir(parents=True)
    (place(tmp_path) / "d.json").mkdir()
    with pytest.raises(ChannelError, match=r"d\.json cannot be removed: Is a directory"):
        put(tmp_path, [Alert(name, 1, 1) for name in "abc"], ["d"])
    assert names(tmp_path) == ["a.json", "b.json", "c.json", "d.json"]
    with pytest.raises(ChannelError, match=r"b\.json cannot be written: Is a directory") as raised:
        put(tmp_path, [Alert("b", 1, 1)])
    assert "a directory has this name" in raised.value.hint


def test_file_in_the_directorys_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "interstat").write_text("")
    with pytest.raises(ChannelError, match="interstat/budget cannot be created: Not a directory"):
        put(tmp_path, [Alert("s", 1, 1)])


def test_unwritable_directory_is_reported(tmp_path: Path) -> None:
    place(tmp_path).mkdir(parents=True)
    place(tmp_path).chmod(0o500)
    code = (
        "import sys, anyio\n"
        "from fluxbudgetd.notify.interband import Alert, Interband\n"
        "anyio.run(Interband(sys.argv[1]).put, [Alert('s', 1, 1)], [], 0)"
    )
    ended = subprocess.run(
        [*OBEDIENT, sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    place(tmp_path).chmod(0o700)
    assert "ChannelError" in ended.stderr.splitlines()[-1]
    assert "s.json cannot be written: Permission denied" in ended.stderr.splitlines()[-1]


def test_full_disk_leaves_only_the_old_file(tmp_path: Path) -> None:
    put(tmp_path, [Alert("s", 1, 1)])
    before = (place(tmp_path) / "s.json").read_bytes()
    # A limit on file sizes interrupts a write in the middle, like a full disk.
    code = (
        "import resource, signal, sys, anyio\n"
        "from fluxbudgetd.notify.interband import Alert, Interband\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "sys.dont_write_bytecode = True\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "anyio.run(Interband(sys.argv[1]).put, [Alert('s', 2, 2)], [], 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "s.json cannot be written: File too large" in ended.stderr.splitlines()[-1]
    assert names(tmp_path) == ["s.json"]
    assert (place(tmp_path) / "s.json").read_bytes() == before


def test_hanging_file_system_blocks_no_later_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hanging file system cannot be made here, so one of its calls is replaced.
    let = threading.Event()
    replace = os.replace

    def hanging(source: str, target: str) -> None:
        let.wait(timeout=60)
        replace(source, target)

    async def body() -> None:
        interband = Interband(str(tmp_path), seconds=0.2)
        with pytest.raises(ChannelError, match=r"took longer than 0\.2 s"):
            await interband.put([Alert("a", 1, 1)], [], AT)
        with pytest.raises(ChannelError, match="still hangs"):
            await interband.put([Alert("b", 1, 1)], [], AT)
        let.set()
        while not await anyio.to_thread.run_sync((place(tmp_path) / "b.json").exists):
            try:
                await interband.put([Alert("b", 1, 1)], [], AT)
            except ChannelError:
                await anyio.sleep(0.01)

    monkeypatch.setattr(os, "replace", hanging)
    try:
        anyio.run(body)
    finally:
        let.set()
    assert names(tmp_path) == ["a.json", "b.json"]


def test_cancelled_call_completes_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # For the same reason, this call waits until it has been cancelled.
    begun, let = threading.Event(), threading.Event()
    replace = os.replace

    def slow(source: str, target: str) -> None:
        begun.set()
        let.wait(timeout=60)
        replace(source, target)

    async def body() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Interband(str(tmp_path)).put, [Alert("a", 1, 1)], [], AT)
            await anyio.to_thread.run_sync(begun.wait, 60)
            tasks.cancel_scope.cancel()
            threading.Timer(0.05, let.set).start()
        assert names(tmp_path) == ["a.json"]

    monkeypatch.setattr(os, "replace", slow)
    try:
        anyio.run(body)
    finally:
        let.set()
