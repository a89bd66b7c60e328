"""State files: never half-written, never outside their directory, and never valid when the daemon is dead."""

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.errors import ChannelError
from fluxbudgetd.notify.state_files import StateFiles
from fluxbudgetd.notify.state_text import State
from fluxbudgetd.wire.state_names import ALIVE, HARD, file_name
from fluxbudgetd.wire.text import fold
from harness.daemon import wait_for

HOSTILE = [
    "..",
    ".",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\0b",
    "a\nb",
    "%2e",
    "%2E.",
    ".hidden",
    "é",
    fold(b"\xff\xfe"),
    "\ufffd",
    "a b",
    "a=b;$(touch x)",
    "--help",
    "x" * 200,
]


def state(run: str = "r1", **changes: object) -> State:
    fields: dict[str, object] = {
        "run": run,
        "phase": "executing",
        "state": "warning",
        "budget": 250_000,
        "remaining": 41_500,
        "spent": 208_500,
        "reserved": 40_000,
        "pct": 83.4,
        "stale": False,
        "cost_basis": "billing",
        "enforcement": "soft",
        "line": "executing ██████▋░ 208k/250k 83%",
        "as_of": "2026-02-20T17:05:55.000000Z",
    }
    return State(**{**fields, **changes})  # type: ignore[arg-type]


def with_open_files(directory: Path, body: Callable[[StateFiles], Awaitable[None]]) -> None:
    """Run a test's body with files that are opened before it and closed after it."""

    async def around() -> None:
        files = StateFiles(str(directory), str(directory / HARD))
        await files.open()
        try:
            await body(files)
        finally:
            await files.close()

    anyio.run(around)


def entries(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def is_free(directory: Path) -> bool:
    """True if no daemon is alive, as a reader finds out."""
    try:
        fd = os.open(directory / ALIVE, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def process(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python process, which has printed its first line, until the block ends."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as made:
        try:
            assert made.stdout is not None
            assert made.stdout.readline() == b"ready\n"
            yield made
        finally:
            made.kill()


# --- contents


def test_lines_of_a_run(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        none = state("r2", budget=None, remaining=None, pct=None, stale=True, spent=0, reserved=0)
        await files.put([state(), none], {}, {})
        assert (tmp_path / "runs" / "r1").read_text() == (
            "run=r1\nphase=executing\nstate=warning\nbudget=250000\nspent=208500\nremaining=41500\npct=83.4\n"
            "reserved=40000\nstale=0\n"
            "cost_basis=billing\nenforcement=soft\nallowed_to=\nallowed_until=\n"
            "line='executing ██████▋░ 208k/250k 83%'\n"
            "as_of=2026-02-20T17:05:55.000000Z\n"
        )
        assert (tmp_path / "runs" / "r2").read_text() == (
            "run=r2\nphase=executing\nstate=warning\nbudget=\nspent=0\nremaining=\npct=\nreserved=0\nstale=1\n"
            "cost_basis=billing\nenforcement=soft\nallowed_to=\nallowed_until=\n"
            "line='executing ██████▋░ 208k/250k 83%'\n"
            "as_of=2026-02-20T17:05:55.000000Z\n"
        )

    with_open_files(tmp_path, body)


@pytest.mark.parametrize("bad", ["$(touch pwned)", "a b", "a;b", "`x`", "a\nb=1", "a\n", "é", "'", "\0"])
def test_value_that_the_shell_would_interpret_is_left_out(tmp_path: Path, bad: str) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state(phase=bad, state=bad, line="", as_of=bad)], {}, {})
        assert (tmp_path / "runs" / "r1").read_text() == (
            "run=r1\nphase=\nstate=\nbudget=250000\nspent=208500\nremaining=41500\npct=83.4\nreserved=40000\n"
            "stale=0\ncost_basis=billing\nenforcement=soft\nallowed_to=\nallowed_until=\nline=''\nas_of=\n"
        )

    with_open_files(tmp_path, body)


def test_shell_can_source_it_through_a_link(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        hostile = state(line="██ $(touch pwned)'; `touch pwned`\n\x1b[2J\"5%")
        await files.put([hostile], {"s/1": "r1"}, {"bead-1": "r1"})
        for link in ("sessions/s%2F1", "scopes/bead-1"):
            shell = [
                "/bin/sh",
                "-euc",
                '. "$1"; echo "$run $remaining $pct $as_of"; echo "$line"',
                "sh",
                str(tmp_path / link),
            ]
            result = await anyio.run_process(shell)
            assert result.stdout.decode() == (
                'r1 41500 83.4 2026-02-20T17:05:55.000000Z\n██ $(touch pwned)?; `touch pwned`??[2J"5%\n'
            )

    with_open_files(tmp_path, body)


def test_modes(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state()], {"s": "r1"}, {})
        for name in ("", "runs", "sessions", "scopes"):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o700
        for name in ("runs/r1", ALIVE):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600

    directory = tmp_path / "run" / "state"
    with_open_files(directory, body)


def test_hostile_names_stay_inside_and_apart(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        runs = [f"r{number}" for number in range(len(HOSTILE))]
        given = dict(zip(HOSTILE, runs, strict=True))
        await files.put([state(run) for run in [*runs, *HOSTILE]], given, given)
        for name, run in given.items():
            written = file_name(name)
            assert written is not None or len(name) > 100
            if written is not None:
                assert (directory / "sessions" / written).read_text().startswith(f"run={run}\n")
                assert (directory / "scopes" / written).read_text().startswith(f"run={run}\n")
        assert len(list((directory / "sessions").iterdir())) == len(HOSTILE)
        assert len(list((directory / "runs").iterdir())) == 2 * len(HOSTILE)
        assert sorted(os.listdir(directory)) == [ALIVE, HARD, "runs", "scopes", "sessions"]

    directory = tmp_path / "state"
    with_open_files(directory, body)
    assert os.listdir(tmp_path) == ["state"]
    assert entries(directory) == []


def test_name_that_is_too_long_has_no_file(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state("x" * 300), state()], {"y" * 300: "r1", "": "r1", "s": "x" * 300}, {"z": "r1"})
        assert entries(tmp_path) == [ALIVE, "runs/r1", "scopes/z"]

    with_open_files(tmp_path, body)


# --- links and changes


def test_links_are_relative_and_are_removed_with_their_run(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state("r1"), state("r2")], {"s": "r1", "t": "r1"}, {"b": "r1"})
        assert os.readlink(tmp_path / "sessions" / "s") == "../runs/r1"
        await files.put([], {"s": "r2", "t": None, "never": None}, {"b": None})
        assert os.readlink(tmp_path / "sessions" / "s") == "../runs/r2"
        assert entries(tmp_path) == [ALIVE, "runs/r1", "runs/r2", "sessions/s"]

    with_open_files(tmp_path, body)


def test_unchanged_files_are_not_written_again(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state()], {"s": "r1"}, {"b": "r1"})
        paths = [tmp_path / name for name in ("runs/r1", "sessions/s", "scopes/b")]
        before = [path.lstat() for path in paths]
        await files.put([state(as_of="2026-02-20T17:06:00.000000Z")], {"s": "r1"}, {"b": "r1"})
        assert [path.lstat() for path in paths] == before
        await files.put([state(spent=1)], {"s": "r1"}, {"b": "r1"})
        assert paths[0].lstat().st_ino != before[0].st_ino
        assert [path.lstat() for path in paths[1:]] == before[1:]

    with_open_files(tmp_path, body)


def test_removed_runs_lose_their_links_too(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state("r1"), state("r2")], {"s": "r1", "t": "r2"}, {"b": "r1"})
        await files.remove(["r1", "missing", "", "x" * 300])
        assert entries(tmp_path) == [ALIVE, "runs/r2", "sessions/t"]
        await files.put([state("r1")], {}, {})
        assert entries(tmp_path) == [ALIVE, "runs/r1", "runs/r2", "sessions/t"]

    with_open_files(tmp_path, body)


def test_links_are_removed_before_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The order cannot be observed from outside, so the real calls are recorded.
    removed: list[str] = []
    unlink = os.unlink

    def noted(path: str) -> None:
        removed.append(os.path.basename(os.path.dirname(path)))
        unlink(path)

    async def body(files: StateFiles) -> None:
        await files.put([state("r1"), state("r2")], {"s": "r1", "t": "r2"}, {"b": "r1"})
        monkeypatch.setattr(os, "unlink", noted)
        await files.remove(["r1"])
        assert removed == ["sessions", "scopes", "runs", "hard"]
        removed.clear()

    with_open_files(tmp_path / "state", body)
    assert removed == ["sessions", "runs", "state"]


def test_deleted_file_is_written_again(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state()], {"s": "r1"}, {})
        (tmp_path / "runs" / "r1").unlink()
        (tmp_path / "sessions" / "s").unlink()
        await files.put([state()], {"s": "r1"}, {})
        assert entries(tmp_path) == [ALIVE, "runs/r1", "sessions/s"]

    with_open_files(tmp_path, body)


@pytest.mark.parametrize("deleted", ["", "runs", "sessions", "scopes", ALIVE])
def test_deleted_directory_is_created_again_with_all_files(tmp_path: Path, deleted: str) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state("r1"), state("r2")], {"s": "r1"}, {"b": "r2"})
        if deleted == ALIVE:
            (directory / ALIVE).unlink()
        else:
            shutil.rmtree(directory / deleted)
        await files.put([state("r2", spent=5)], {}, {})
        assert entries(directory) == [ALIVE, "runs/r1", "runs/r2", "scopes/b", "sessions/s"]
        assert "spent=5\n" in (directory / "runs" / "r2").read_text()
        assert not is_free(directory)

    directory = tmp_path / "state"
    with_open_files(directory, body)
    assert entries(directory) == []


def test_symbolic_link_in_a_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        (tmp_path / "state" / "runs" / "r1").symlink_to(victim)
        await files.put([state()], {}, {})
        assert (tmp_path / "state" / "runs" / "r1").read_text().startswith("run=r1\n")
        assert victim.read_text() == "untouched"

    victim = tmp_path / "victim"
    victim.write_text("untouched")
    with_open_files(tmp_path / "state", body)


def test_file_that_cannot_be_written_is_reported_and_the_rest_is_written(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        (tmp_path / "runs" / "r1").mkdir()
        (tmp_path / "sessions" / "s").mkdir()
        with pytest.raises(ChannelError, match=r"runs/r1 cannot be written: Is a directory"):
            await files.put([state("r1"), state("r2")], {"s": "r2", "t": "r2"}, {})
        assert entries(tmp_path) == [ALIVE, "runs/r2", "sessions/t"]
        (tmp_path / "runs" / "r1").rmdir()
        (tmp_path / "sessions" / "s").rmdir()
        await files.put([state("r1")], {"s": "r2"}, {})
        assert entries(tmp_path) == [ALIVE, "runs/r1", "runs/r2", "sessions/s", "sessions/t"]

    with_open_files(tmp_path, body)


def test_failed_write_is_repeated_even_with_the_same_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A disk that is full for only one call cannot be made.
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def body(files: StateFiles) -> None:
        await files.put([state(spent=1)], {}, {})
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(ChannelError, match="No space left") as raised:
                await files.put([state(spent=2)], {}, {})
            assert raised.value.hint == "make room on its file system"
        assert entries(tmp_path) == [ALIVE, "runs/r1"], "nothing temporary is left"
        await files.put([state(spent=2)], {}, {})
        assert "spent=2\n" in (tmp_path / "runs" / "r1").read_text()

    with_open_files(tmp_path, body)


# --- readers

READER = """
import sys
keys = ["run", "phase", "state", "budget", "spent", "remaining", "pct", "reserved", "stale"]
keys += ["cost_basis", "enforcement", "allowed_to", "allowed_until", "line", "as_of"]
print("ready", flush=True)
seen = set()
while len(seen) < 1000:
    for path in sys.argv[1:]:
        text = open(path).read()
        pairs = [line.split("=") for line in text.splitlines()]
        assert [key for key, _ in pairs] == keys and text.endswith("Z\\n"), text
        values = dict(pairs)
        assert values["spent"] == values["reserved"], text
        seen.add(values["spent"])
print("fine", flush=True)
"""


@pytest.mark.soak
def test_reader_always_sees_a_whole_file(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state("r1", spent=0, reserved=0), state("r2", spent=0, reserved=0)], {"s": "r1"}, {})
        with process(READER, tmp_path / "runs" / "r1", tmp_path / "sessions" / "s") as reader:
            assert reader.stdout is not None
            os.set_blocking(reader.stdout.fileno(), False)
            result, number = None, 0
            while not result:
                number += 1
                tokens = number * 10 ** (number % 9)
                runs = [state(run, spent=tokens, reserved=tokens) for run in ("r1", "r2")]
                await files.put(runs, {"s": ("r1", "r2")[number % 2]}, {})
                assert reader.poll() in (None, 0)
                result = reader.stdout.read()
            assert result == b"fine\n"

    with_open_files(tmp_path, body)


# --- the lock

DAEMON = """
import sys, anyio
from fluxbudgetd.notify.state_files import StateFiles
async def body():
    files = StateFiles(sys.argv[1], sys.argv[1] + "/hard")
    await files.open()
    print("ready", flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)
    await files.close()
anyio.run(body)
"""

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, getattr(fcntl, sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
"""


def test_lock_is_held_while_the_daemon_lives(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        await files.put([state()], {"s": "r1"}, {"b": "r1"})
        assert not is_free(tmp_path)

    with_open_files(tmp_path, body)
    assert is_free(tmp_path)
    assert entries(tmp_path) == []


def test_killed_daemon_releases_the_lock_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    async def body(files: StateFiles) -> None:
        assert entries(tmp_path) == [ALIVE]
        assert not is_free(tmp_path)

    with process(DAEMON, tmp_path) as daemon:
        assert not is_free(tmp_path)
        (tmp_path / "runs" / "r1").write_text("run=r1\n")
        (tmp_path / "sessions" / "s").symlink_to("../runs/r1")
        (tmp_path / "scopes" / "b").symlink_to("../runs/gone")
        (tmp_path / ".fluxbudget-left").write_text("run=")
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert is_free(tmp_path)
    with_open_files(tmp_path, body)


def test_files_of_a_stopped_run_wait_for_the_next_daemon(tmp_path: Path) -> None:
    """They stay if it still knows the run, until it says whether the run is stopped."""

    async def first(files: StateFiles) -> None:
        await files.put([state("r1"), state("r2")], {"s": "r1", "t": "r1", "u": "r2"}, {"b": "r1"}, ["r1"])

    async def body(is_stopped: bool) -> None:
        files = StateFiles(str(tmp_path), str(tmp_path / HARD))
        await files.open(["r1", "r2"])
        assert entries(tmp_path) == [ALIVE, *kept]
        # Meanwhile the session `t` has left the run.
        await files.put([state("r1")], {"s": "r1"}, {"b": "r1"}, ["r1"] if is_stopped else [])
        assert entries(tmp_path) == [
            ALIVE,
            *("hard/r1" for _ in range(is_stopped)),
            "runs/r1",
            "scopes/b",
            "sessions/s",
        ]
        await files.close()

    kept = ["hard/r1", "runs/r1", "scopes/b", "sessions/s", "sessions/t"]
    for is_stopped in (True, False):
        with_open_files(tmp_path, first)
        # (The link of `u`, which leads nowhere now, says that this session is not one of the stopped run.)
        assert entries(tmp_path) == [ALIVE, *kept, "sessions/u"]
        assert not (tmp_path / "sessions" / "u").exists()
        assert is_free(tmp_path)
        anyio.run(body, is_stopped)
    assert entries(tmp_path) == []
    with_open_files(tmp_path, first)
    anyio.run(StateFiles(str(tmp_path), str(tmp_path / HARD)).open)
    assert entries(tmp_path) == [ALIVE]


def test_living_daemon_keeps_its_files(tmp_path: Path) -> None:
    with process(DAEMON, tmp_path):
        (tmp_path / "runs" / "r1").write_text("run=r1\n")
        with pytest.raises(ChannelError, match="alive is locked by another process") as raised:
            anyio.run(StateFiles(str(tmp_path), str(tmp_path / HARD)).open)
        assert raised.value.hint
        assert entries(tmp_path) == [ALIVE, "runs/r1"]


def test_readers_hold_the_lock_only_for_a_moment_and_are_waited_for(tmp_path: Path) -> None:
    async def body() -> None:
        files = StateFiles(str(tmp_path), str(tmp_path / HARD))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(files.open)
            # The old file must be removed while the reader holds the lock, or it would count meanwhile.
            await anyio.to_thread.run_sync(
                wait_for, lambda: not (tmp_path / "runs" / "old").exists(), "the old file to go"
            )
            reader.kill()
        assert not is_free(tmp_path)
        await files.close()

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old").write_text("run=old\n")
    with process(HOLDER, tmp_path / ALIVE, "LOCK_SH") as reader:
        anyio.run(body)


def test_reader_that_keeps_the_lock_is_reported_and_the_next_put_opens(tmp_path: Path) -> None:
    async def body() -> None:
        files = StateFiles(str(tmp_path), str(tmp_path / HARD))
        locked = pytest.raises(ChannelError, match="alive is locked by another process")
        with process(HOLDER, tmp_path / ALIVE, "LOCK_SH"), locked:
            await files.open()
        await files.put([state()], {}, {})
        assert entries(tmp_path) == [ALIVE, "runs/r1"]
        assert not is_free(tmp_path)
        await files.close()

    anyio.run(body)


def test_closing_what_was_never_opened_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "r1").write_text("run=r1\n")
    anyio.run(StateFiles(str(tmp_path), str(tmp_path / HARD)).close)
    assert entries(tmp_path) == ["runs/r1"]


def test_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChannelError, match="file/state/runs cannot be created: Not a directory"):
        anyio.run(StateFiles(str(tmp_path / "file" / "state"), str(tmp_path / "file" / HARD)).open)


def test_lock_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ALIVE).symlink_to(tmp_path / "victim")
    with pytest.raises(ChannelError, match="alive cannot be locked"):
        anyio.run(StateFiles(str(tmp_path), str(tmp_path / HARD)).open)
    assert not (tmp_path / "victim").exists()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    async def body() -> None:
        await anyio.to_thread.run_sync(os.listdir, tmp_path)  # the thread and the loop's own descriptors
        # (Threads that other tests have abandoned may end meanwhile.)
        files_before, threads_before = set(os.listdir("/proc/self/fd")), threading.active_count()
        for number in range(20):
            files = StateFiles(str(tmp_path / "state"), str(tmp_path / HARD))
            await files.open()
            await files.put([state(spent=number)], {"s": "r1"}, {})
            await anyio.to_thread.run_sync(shutil.rmtree, tmp_path / "state")
            await files.put([], {}, {})
            await files.close()
        assert set(os.listdir("/proc/self/fd")) <= files_before
        assert threading.active_count() <= threads_before

    anyio.run(body)


LEASE = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_file_system_that_hangs_does_not_block_the_daemon(tmp_path: Path) -> None:
    """A lease makes opening the file block, as on a network file system whose server is gone."""

    async def body() -> None:
        files = StateFiles(str(tmp_path), str(tmp_path / HARD), seconds=0.3)
        with process(LEASE, tmp_path / ALIVE):
            with pytest.raises(ChannelError, match=r"took longer than 0\.3 s"):
                await files.open()
            with pytest.raises(ChannelError, match="still hangs"):
                await files.put([state()], {}, {})
        while not await anyio.to_thread.run_sync((tmp_path / "runs" / "r1").exists):
            try:
                await files.put([state()], {}, {})
            except ChannelError:
                await anyio.sleep(0.01)
        assert not is_free(tmp_path)
        await files.close()

    anyio.run(body)
