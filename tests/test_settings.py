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
from harness.configuration import CALIBRATION
from harness.daemon import wait_for


class Live:
    """Settings over two files, as the daemon has them."""

    def __init__(self, directory: Path, *, required: bool = False) -> None:
        self.config = directory / "config.toml"
        self.calibration = directory / "calibration.json"
        self.settings = Settings(str(self.config), required=required, claude_dir=str(directory / "claude"))

    def refresh(self, *, force: bool = False) -> list[str]:
        """Refresh; return what was logged."""

        async def look() -> None:
            await self.settings.refresh(force=force)

        with capture_logs() as logs:
            anyio.run(look)
        return [str(entry["event"]) for entry in logs]

    @property
    def warn_pct(self) -> int:
        return self.settings.config.runs.warn_pct

    @property
    def faults(self) -> list[str]:
        return [fault.what for fault in self.settings.faults]


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """Settings without any file yet."""
    return Live(tmp_path)


RELOADED = ["configuration reloaded"]
BROKEN = ["configuration broken, keeping the last good one"]


def test_change_is_seen_and_told_once(live: Live) -> None:
    live.settings.load_first()
    assert (live.warn_pct, live.refresh()) == (80, [])
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    assert (live.refresh(), live.warn_pct) == (RELOADED, 70)
    assert live.refresh() == []
    live.config.unlink()
    assert (live.refresh(), live.warn_pct) == (RELOADED, 80)


def test_change_within_a_clock_tick_is_seen(live: Live) -> None:
    """Neither the file's size nor, perhaps, its times tell."""
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


def test_what_was_in_the_way_has_gone(live: Live) -> None:
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


def test_calibration_comes_breaks_and_goes(live: Live) -> None:
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
    wait_for(lambda: file_stamp(str(live.config)), "the file to have been left alone for a while")
    live.settings.load_first()
    live.refresh()
    assert len(reads) == 1
    live.refresh(force=True)
    assert len(reads) == 2
    live.config.write_text("# another size\n")
    live.refresh()
    assert len(reads) == 3


def test_error_that_passes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays as it is. No file system here fails once and then works, so the loader does."""
    failures = [ConfigError("cannot be read: Input/output error", "wait")]

    def failing(path: str, *, required: bool) -> Config:
        if failures:
            raise failures.pop()
        return load_config(path, required=required)

    monkeypatch.setattr(settings_module, "load_config", failing)
    live = Live(tmp_path)
    live.config.write_text("[runs]\nwarn_pct = 70\n")
    wait_for(lambda: file_stamp(str(live.config)), "the file to have been left alone for a while")
    assert (live.refresh(), live.warn_pct) == (BROKEN, 80)
    assert (live.refresh(), live.warn_pct, live.faults) == (RELOADED, 70, [])


def test_marks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_stamp(str(path)) == ()
    path.touch()
    assert file_stamp(str(path)) is None, "another write within the tick would leave the stamp as it is"
    assert file_stamp("/a\0b") is None


def test_file_system_that_does_not_answer_delays_no_request(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs cannot be had from a real file system here, so the loader waits for the test instead."""
    hangs, release = threading.Event(), threading.Event()

    def hang(_path: str) -> None:
        hangs.set()
        release.wait()

    monkeypatch.setattr(settings_module, "file_stamp", hang)

    async def look() -> None:
        while not hangs.is_set():
            await live.settings.refresh(anyio.current_time() + 0.01)
        before = threading.active_count()
        for _ in range(10):
            await live.settings.refresh(anyio.current_time() + 0.2)
        assert threading.active_count() <= before + 1, "a request that gives up must not leave another thread each time"
        release.set()

    anyio.run(look)
    assert live.settings.config == Config()
