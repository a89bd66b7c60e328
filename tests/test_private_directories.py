"""fluxbudget's own directories are opened without following symbolic links."""

import os
import shutil
import stat
from pathlib import Path

import anyio
import pytest

from fluxbudgetd.errors import ChannelError, StartError
from fluxbudgetd.notify.atomic import private_directories
from fluxbudgetd.notify.state_files import StateFiles
from fluxbudgetd.notify.state_text import State
from fluxbudgetd.server.locking import private_directory
from fluxbudgetd.wire.state_names import HARD
from harness.daemon import Home


def state(spent: int) -> State:
    """Return the state of a run that has spent this much."""
    return State(
        run="r1",
        phase="executing",
        state="ok",
        budget=100,
        remaining=100 - spent,
        spent=spent,
        reserved=0,
        pct=float(spent),
        stale=False,
        cost_basis="billing",
        enforcement="hard",
        line="",
        as_of="2026-02-20T17:05:55.000000Z",
    )


@pytest.mark.parametrize("name", ["", "runs", "sessions", "scopes", HARD])
def test_directory_that_is_a_symbolic_link_is_not_followed(tmp_path: Path, name: str) -> None:
    """The linked directory keeps its files and mode, and nothing is written there."""
    victim, directory = tmp_path / "victim", tmp_path / "state"
    victim.mkdir()
    victim.chmod(0o755)
    (victim / "file").write_text("kept")

    async def around() -> None:
        files = StateFiles(str(directory), str(directory / HARD))
        await files.open()
        await files.put([state(6)], {}, {})
        (directory / name).rename(tmp_path / "away")
        (directory / name).symlink_to(victim)
        with pytest.raises(ChannelError, match="cannot be created: Not a directory"):
            await files.put([state(7)], {}, {}, ["r1"])
        (directory / name).unlink()
        await files.put([state(8)], {}, {})
        await files.close()

    anyio.run(around)
    (directory / name).rename(tmp_path / "again")
    (directory / name).symlink_to(victim)
    with pytest.raises(ChannelError, match="cannot be created: Not a directory"):
        anyio.run(StateFiles(str(directory), str(directory / HARD)).open)
    assert [path.name for path in victim.iterdir()] == ["file"]
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755


def test_runtime_directory_is_not_created_for_the_state_files(tmp_path: Path) -> None:
    """It was removed with everything in it. Once it exists again, everything below it is created."""
    runtime = tmp_path / "run"
    directory = runtime / "fluxbudget" / "state"

    async def around() -> None:
        files = StateFiles(str(directory), str(runtime / "fluxbudget" / HARD))
        runtime.mkdir()
        await files.open()
        await files.put([state(6)], {}, {})
        shutil.rmtree(runtime)
        with pytest.raises(ChannelError, match="cannot be created: No such file or directory"):
            await files.put([state(7)], {}, {}, ["r1"])
        assert not runtime.exists()
        runtime.mkdir()
        await files.put([state(8)], {}, {}, ["r1"])
        assert (directory / "runs" / "r1").exists()
        assert (runtime / "fluxbudget" / HARD / "r1").exists()
        await files.close()

    anyio.run(around)


def test_state_directory_that_is_a_symlink_is_refused(home: Home, tmp_path: Path) -> None:
    """It keeps its mode. A link that the user names is followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="link is a symlink"):
        private_directory(str(tmp_path / "link"), ours=True)
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o755
    home.start("--state-dir", str(tmp_path / "link"))
    assert (tmp_path / "elsewhere" / "ledger.db").exists()


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_new_directory_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        private_directories(str(tmp_path / "a" / "b"))
        private_directory(str(tmp_path / "c"), ours=True)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "c")} == {0o700}
