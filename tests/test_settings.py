"""Configuration files that change while the daemon runs."""

import threading
from pathlib import Path

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from fluxbudgetd.config import settings as settings_module
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.reading import file_stamp
from fluxbudgetd.config.schema import Config
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ConfigError
from harness.configuration import CALIBRATION, claude_directory
from harness.daemon import wait_for


class Live:
    """Settings of two files, as the daemon has them."""

    def __init__(self, directory: Path, *, required: bool = False) -> None:
        self.config = directory / "config.toml"
        self.calibration = directory / "calibration.json"
        self.settings = Settings(
            str(self.config), required=required, claude_dirs=claude_directory(directory / "claude")
        )

    def refresh(self, *, force: bool = False) -> list[str]:
        """Refresh; return what was logged."""

        async def refresh() -> None:
            await self.settings.refresh(force=force)

        with capture_logs() as logs:
            anyio.run(refresh)
        return [str(entry["event"]) for entry in logs]

    @property
    def warn_pct(self) -> int:
        return self.settings.config.runs.warn_pct

    @property
    def faults(self) -> list[str]:
        return [fault.what for fault in self.settings.faults]


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """Return settings whose files do not exist yet."""
    return Live(tmp_path)


RELOADED = ["configuration reloaded"]
BROKEN = ["configuration broken, keeping the last good one"]


def test_change_is_noticed_and_logged_once(live: Live) -> None:
    live.settings.load_first()
    assert (live.warn_pct, live.refresh()) == (80, [])
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    assert (live.refresh(), live.warn_pct) == (RELOADED, 70)
    assert live.refresh() == []
    live.config.unlink()
    assert (live.refresh(), live.warn_pct) == (RELOADED, 80)


def test_change_within_a_clock_tick_is_noticed(live: Live) -> None:
    """The file's size stays the same, and perhaps its times, too."""
    for pct in range(10, 60):
        live.config.write_text(f"[runs]\nwarn_pct = {pct}\n")
        live.refresh()
        assert live.warn_pct == pct


def test_broken_file_keeps_the_last_good_one(live: Live) -> None:
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    live.settings.load_first()
    for content in ("[runs]\nwarn_pct = 0\n", "[runs]\nwarn_pct = 100\n"):
        live.config.write_text(content)
        assert (live.refresh(), live.warn_pct, len(live.faults)) == (BROKEN, 70, 1)
        assert (live.refresh(), live.refresh(force=True)) == ([], [])
        assert live.faults[0].startswith(f"{live.config}: runs.warn_pct is ")
        assert live.settings.faults[0].hint
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    assert (live.refresh(), live.warn_pct, live.faults) == (RELOADED, 70, [])


def test_directory_in_place_of_the_file_is_a_fault_until_it_is_removed(live: Live) -> None:
    live.settings.load_first()
    live.config.mkdir()
    assert (live.refresh(), live.faults) == (BROKEN, [f"{live.config}: it is a directory; allowed: a regular file"])
    live.config.rmdir()
    assert (live.refresh(), live.faults) == (RELOADED, [])


def test_broken_config_at_the_start_is_an_error(live: Live) -> None:
    live.config.write_text("nonsense")
    with pytest.raises(ConfigError):
        live.settings.load_first()


def test_chosen_config_that_is_removed_is_a_fault(tmp_path: Path) -> None:
    live = Live(tmp_path, required=True)
    with pytest.raises(ConfigError):
        live.settings.load_first()
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    live.settings.load_first()
    live.config.unlink()
    assert (live.refresh(), live.warn_pct) == (BROKEN, 70)
    assert live.faults == [f"{live.config}: the file does not exist"]


def test_calibration_is_created_damaged_and_removed(live: Live) -> None:
    live.calibration.write_text("{")
    with capture_logs() as logs:
        live.settings.load_first()
    assert [entry["event"] for entry in logs] == BROKEN
    assert (live.settings.calibration, len(live.faults)) == (None, 1)
    live.calibration.write_bytes(msgspec.json.encode(CALIBRATION))
    assert (live.refresh(), live.faults) == (RELOADED, [])
    good = live.settings.calibration
    assert good is not None
    live.calibration.write_text("[]")
    live.config.write_text("nonsense")
    assert (live.refresh(), live.settings.calibration, len(live.faults)) == (BROKEN * 2, good, 2)
    live.calibration.unlink()
    assert (live.refresh(), live.settings.calibration, len(live.faults)) == (RELOADED, None, 1)


def test_file_that_has_not_changed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def counted(path: str, *, required: bool) -> Config:
        reads.append(path)
        return load_config(path, required=required)

    monkeypatch.setattr(settings_module, "load_config", counted)
    live = Live(tmp_path)
    live.config.write_text("")
    wait_for(lambda: file_stamp(str(live.config)), "the file to be unchanged for a while")
    live.settings.load_first()
    live.refresh()
    assert len(reads) == 1
    live.refresh(force=True)
    assert len(reads) == 2
    live.config.write_text("# another size\n")
    live.refresh()
    assert len(reads) == 3


def test_failed_read_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is retried although the file has not changed. The loader fails, because no file system here fails once."""
    failures = [ConfigError("cannot be read: Input/output error", "wait")]

    def failing(path: str, *, required: bool) -> Config:
        if failures:
            raise failures.pop()
        return load_config(path, required=required)

    monkeypatch.setattr(settings_module, "load_config", failing)
    live = Live(tmp_path)
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    wait_for(lambda: file_stamp(str(live.config)), "the file to be unchanged for a while")
    assert (live.refresh(), live.warn_pct) == (BROKEN, 80)
    assert (live.refresh(), live.warn_pct, live.faults) == (RELOADED, 70, [])


def test_stamp_of_a_recent_file_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_stamp(str(path)) == ()
    path.touch()
    assert file_stamp(str(path)) is None, "another write within the tick would leave the stamp as it is"
    assert file_stamp("/a\0b") is None


def test_hanging_file_system_delays_no_request(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader hangs until the test ends, because no file system here can be made to hang."""
    hangs, release = threading.Event(), threading.Event()

    def hang(_path: str) -> None:
        hangs.set()
        release.wait()

    monkeypatch.setattr(settings_module, "file_stamp", hang)

    async def body() -> None:
        while not hangs.is_set():
            await live.settings.refresh(anyio.current_time() + 0.01)
        before = threading.active_count()
        for _ in range(10):
            assert not await live.settings.refresh(anyio.current_time() + 4)  # returns after 50 ms
        assert threading.active_count() <= before + 1, "a request that times out must not leave another thread"
        release.set()

    anyio.run(body)
    assert live.settings.config == Config()
