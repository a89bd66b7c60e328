"""config.toml and calibration.json: what they say holds; what is wrong is said in one line and changes nothing."""

import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
from hypothesis import given
from structlog.testing import capture_logs

from fluxbudgetd.config import settings as settings_module
from fluxbudgetd.config.calibration import Calibration, load_calibration
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.reading import mark
from fluxbudgetd.config.schema import Config, Stage
from fluxbudgetd.config.settings import Settings
from fluxbudgetd.errors import ConfigError
from harness.configuration import CALIBRATION, IN_THE_WAY, anything, holds, wrong
from harness.daemon import wait_for
from harness.privilege import OBEDIENT

ROOT = Path(__file__).parents[1]
TEMPLATE = ROOT / "config" / "fluxbudget.toml"
MAX = 2**63 - 1


def wrong_config(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "config.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return wrong(lambda: load_config(str(path), required=False), path)


def config_of(tmp_path: Path, content: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(content)
    return load_config(str(path), required=True)


def keys(table: object, above: str = "") -> Iterator[str]:
    if isinstance(table, dict):
        for key, value in table.items():
            yield from keys(value, f"{above}.{key}".removeprefix("."))
    else:
        yield above


def test_template_is_the_defaults() -> None:
    """The shipped file has every key, and each at its default."""
    assert load_config(str(TEMPLATE), required=True) == Config()
    assert set(keys(tomllib.loads(TEMPLATE.read_text()))) == set(keys(msgspec.to_builtins(Config())))


def test_document_has_every_key() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    # One row stands for all stages, one for all phases, one for all complexities.
    for key in keys(msgspec.to_builtins(Config())):
        table, _, name = key.rpartition(".")
        shown = {"phases.estimates": "PHASE", "runs.budgets": "1"}.get(table, name)
        assert f"`{shown}`" in text, key


def test_absent_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(str(tmp_path / "none.toml"), required=False) == Config()
    (tmp_path / "file").touch()
    assert load_config(str(tmp_path / "file" / "config.toml"), required=False) == Config()


def test_file_that_was_asked_for_has_to_exist(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert wrong(lambda: load_config(str(path), required=True), path) == "the file does not exist"


def test_defaults() -> None:
    config = Config()
    assert [config.runs.budgets.of_complexity(n) for n in range(1, 6)] == [50_000, 100_000, 250_000, 500_000, 1_000_000]
    assert list(config.phases.estimates) == list(config.runs.phases)
    assert (config.phases.of("executing"), config.phases.of("another")) == (150_000, 30_000)


def test_what_a_file_names_changes_and_nothing_else(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        """
        [runs]
        warn_pct = 99
        phases = ["a", "b"]
        [runs.budgets]
        2 = 1
        [phases.estimates]
        planned = 0
        own = 7
        [stages.ship]
        share = 0
        [stages.build]
        floor = 0
        [warnings]
        thresholds = []
        """,
    )
    assert (config.runs.warn_pct, config.runs.phases, config.runs.complexity) == (99, ("a", "b"), 3)
    assert [config.runs.budgets.of_complexity(n) for n in (1, 2)] == [50_000, 1]
    assert [config.phases.of(name) for name in ("planned", "own", "shipping")] == [0, 7, 100_000]
    assert (config.stages.ship, config.stages.build, config.stages.design) == (
        Stage(0, 5_000),
        Stage(40, 0),
        Stage(25, 5_000),
    )
    assert config.warnings.thresholds == ()


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert config_of(tmp_path, "\ufeff[runs]\nwarn_pct = 7\n").runs.warn_pct == 7


RUNS = "budgets, complexity, cost_basis, enforcement, phases, warn_pct"
A_PATH = "an absolute path, one that begins with ~/, or nothing for the installed plugin's"
NAMES = "1 to 64 letters, digits, dots, colons, underscores or hyphens"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[runs]\nwarn_pct = 120", "runs.warn_pct is 120; allowed: 1 to 99"),
        ("[runs]\nwarn_pct = 0", "runs.warn_pct is 0; allowed: 1 to 99"),
        ("[runs]\nwarn_pct = true", "runs.warn_pct is true; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = 80.0", "runs.warn_pct is 80.0; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = nan", "runs.warn_pct is nan; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = '80'", 'runs.warn_pct is "80" (text); allowed: a whole number, 1 to 99'),
        ("[runs]\nwarn_pct = [1]", "runs.warn_pct is an array; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = {a = 1}", "runs.warn_pct is a table; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = 2026-01-02", "runs.warn_pct is 2026-01-02; allowed: a whole number, 1 to 99"),
        (f"[runs]\nwarn_pct = 0x{'f' * 90_000}", "runs.warn_pct is a number of more than 57 digits; allowed: 1 to 99"),
        (
            '[runs]\nwarn_pct = "\\u001b[2J\\n"',
            'runs.warn_pct is "\\x1b[2J\\n" (text); allowed: a whole number, 1 to 99',
        ),
        ("[runs]\nwarnpct = 1", f"runs.warnpct is not a key; allowed: {RUNS}"),
        ("[runs]\n'a b' = 1", f'runs."a b" is not a key; allowed: {RUNS}'),
        ("run = 1", "run is not a key; allowed: channels, flux_drive, phases, runs, stages, warnings"),
        ("runs = 1", f"runs is 1; allowed: a table with {RUNS}"),
        ("[[runs]]\nwarn_pct = 1", f"runs is an array; allowed: a table with {RUNS}"),
        ("[runs]\ncomplexity = 6", "runs.complexity is 6; allowed: 1 to 5"),
        ("[runs]\nenforcement = 'firm'", 'runs.enforcement is "firm"; allowed: "hard", "soft"'),
        ("[runs]\ncost_basis = 1", 'runs.cost_basis is 1; allowed: "billing", "total"'),
        ("[runs]\nphases = []", "runs.phases has 0 values; allowed: 1 to 64 different names"),
        (
            f"[runs]\nphases = [{','.join(f'{n!r}' for n in map(str, range(65)))}]",
            "runs.phases has 65 values; allowed: 1 to 64 different names",
        ),
        (
            "[runs]\nphases = ['a', 'b', 'a']",
            "runs.phases has a more than once; allowed: 1 to 64 different names",
        ),
        ("[runs]\nphases = ['a', 'b|c']", f'runs.phases[1] is "b|c"; allowed: {NAMES}'),
        ('[runs]\nphases = ["a\\n"]', f'runs.phases[0] is "a\\n"; allowed: {NAMES}'),
        ("[runs]\nphases = 'a'", 'runs.phases is "a"; allowed: 1 to 64 different names'),
        ("[runs.budgets]\n1 = 0", f"runs.budgets.1 is 0; allowed: 1 to {MAX}"),
        (f"[runs.budgets]\n1 = {2**63}", f"runs.budgets.1 is {2**63}; allowed: 1 to {MAX}"),
        ("[runs.budgets]\n6 = 1", "runs.budgets.6 is not a key; allowed: 1, 2, 3, 4, 5"),
        ("[phases]\ndefault = -1", f"phases.default is -1; allowed: 0 to {MAX}"),
        ("[phases]\nestimates = 1", "phases.estimates is 1; allowed: a table"),
        ("[phases.estimates]\nown = -1", f"phases.estimates.own is -1; allowed: 0 to {MAX}"),
        ("[phases.estimates]\n'a b' = 1", f'phases.estimates."a b" is not a name that can be; allowed: {NAMES}'),
        ("[stages.build]\nshare = 101", "stages.build.share is 101; allowed: 0 to 100"),
        ("[stages.build]\nfloor = -1", f"stages.build.floor is -1; allowed: 0 to {MAX}"),
        ("[stages.build]\nshare = 41", "stages has shares of 101 together; allowed: shares of at most 100 together"),
        ("[stages.test]\nshare = 1", "stages.test is not a key; allowed: build, design, discover, reflect, ship"),
        ("[warnings]\nthresholds = [0]", 'warnings.thresholds[0] is 0; allowed: 1 to 1000, or "warn_pct"'),
        ("[warnings]\nthresholds = [1, 1001]", 'warnings.thresholds[1] is 1001; allowed: 1 to 1000, or "warn_pct"'),
        (
            "[warnings]\nthresholds = ['warn']",
            'warnings.thresholds[0] is "warn"; allowed: a whole number, 1 to 1000, or "warn_pct"',
        ),
        (
            "[warnings]\nthresholds = [5, 5]",
            "warnings.thresholds has 5 more than once; allowed: each threshold once",
        ),
        (
            "[flux_drive]\nbudget_file = 'a/b'",
            f'flux_drive.budget_file is "a/b"; allowed: {A_PATH}',
        ),
        ("[runs]\nwarn_pct = 1\nwarn_pct = 2", "line 3, the end of the file: Cannot overwrite a value"),
        ("a = 1\nb 2\n", "line 2, column 3: Expected '=' after a key in a key/value pair"),
        ("a = 'b\nc'", "line 1, column 7: Found invalid character '\\n'"),
        (b"# a\n# b\xff", "line 2 has the byte 0xff; allowed: UTF-8"),
        (f"a = 1\nb = {'1' * 5000}", "line 2: a number of more than 4300 digits"),
        (f"a = {'[' * 5000}", "arrays or tables are nested too deep"),
        ("#" * ((1 << 20) + 1), "it is larger than 1 MiB; allowed: at most 1 MiB"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert wrong_config(tmp_path, content) == said


def test_long_values_are_cut(tmp_path: Path) -> None:
    said = wrong_config(tmp_path, f"[runs]\nenforcement = '{'x' * 100_000}'")
    assert said == f'runs.enforcement is "{"x" * 57}…"; allowed: "hard", "soft"'
    assert len(wrong_config(tmp_path, f"{'k' * 100_000} = 1")) < 200


def test_nearest_key_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[runs]\nwarnpct = 1")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), required=False)
    assert caught.value.hint == "did you mean runs.warn_pct?"
    path.write_text("[runs]\nzzz = 1")
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), required=False)
    assert caught.value.hint == "remove it, or look for a newer fluxbudget"


@pytest.mark.parametrize(("make", "said"), IN_THE_WAY)
def test_something_else_in_the_files_place(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    config, calibration = tmp_path / "config.toml", tmp_path / "calibration.json"
    make(config)
    make(calibration)
    assert wrong(lambda: load_config(str(config), required=False), config) == said
    assert wrong(lambda: load_calibration(str(calibration)), calibration) == said


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert wrong(lambda: load_config(str(path), required=False), path) == "it cannot be read: File name too long"
    with pytest.raises(ConfigError, match="this is no path"):
        load_config("/a\0b", required=False)
    strange = os.fsdecode(bytes(tmp_path) + b"/\xff\n")
    with pytest.raises(ConfigError) as caught:
        load_config(strange, required=True)
    assert caught.value.message == f"{tmp_path}/\\xff\\n: the file does not exist"


# --- calibration.json


def calibration_with(*path: str, value: object) -> bytes:
    made = msgspec.json.decode(msgspec.json.encode(CALIBRATION))
    at = made
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return msgspec.json.encode(made)


def test_calibration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert load_calibration(str(path)) is None
    path.write_bytes(calibration_with("later", value={"a": 1}))
    found = load_calibration(str(path))
    assert found is not None
    assert msgspec.to_builtins(found) == CALIBRATION
    path.write_bytes(calibration_with("slicing", "multiplier", value=None))
    found = load_calibration(str(path))
    assert found is not None
    assert found.slicing.multiplier is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("v",), 2, "v is 2; allowed: 1"),
        (("v",), True, "v is true; allowed: 1"),
        (("phases",), [], "phases is an array; allowed: an object"),
        (("phases", "a b"), 1, 'phases."a b" is 1; allowed: an object with billing, sample_size, total'),
        (("phases", "executing", "billing", "mean"), -1, f"phases.executing.billing.mean is -1; allowed: 0 to {MAX}"),
        (
            ("phases", "executing", "total", "p50"), 1.0,
            f"phases.executing.total.p50 is 1.0; allowed: a whole number, 0 to {MAX}",
        ),
        (("agents", "x"), {}, "agents.x.billing is missing; allowed: an object with mean, p50, p90"),
        (("agents", "fd-safety", "sample_size"), -1, f"agents.fd-safety.sample_size is -1; allowed: 0 to {MAX}"),
        (("slicing", "multiplier"), 0, "slicing.multiplier is 0; allowed: a number, above 0, at most 10, or null"),
        (("slicing", "multiplier"), "x", 'slicing.multiplier is "x"; allowed: a number, above 0, at most 10, or null'),
        (("slicing", "median"), -0.5, "slicing.median is -0.5; allowed: a number, at least 0, or null"),
        (("slicing", "was"), None, "slicing.was is null; allowed: a number, above 0, at most 10"),
        (("provenance", "runs"), -3, f"provenance.runs is -3; allowed: 0 to {MAX}"),
        (("provenance", "at"), 5, "provenance.at is 5; allowed: text"),
    ],
)  # fmt: skip
def test_broken_calibration(tmp_path: Path, path: tuple[str, ...], value: object, said: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(calibration_with(*path, value=value))
    assert wrong(lambda: load_calibration(str(file)), file) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1, column 1: Input data was truncated"),
        (b'{\n "v": 1,\n}', "line 3, column 1: JSON is malformed: trailing comma in object"),
        (b"[]", "the whole file is an array; allowed: an object with agents, phases, provenance, slicing, v"),
        (b"[" * 100_000, "line 1, column 100001: maximum recursion depth exceeded while deserializing an object"),
        (b'\n"\xff"', "line 2 has the byte 0xff; allowed: UTF-8"),
    ],
)
def test_calibration_that_is_no_json(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_bytes(content)
    assert wrong(lambda: load_calibration(str(file)), file) == said


# --- whatever the bytes

TOML_PIECES = [
    "[runs]\n", "[runs", "[stages.build]\n", "[[", "]", "runs", "phases", "warn_pct", "thresholds", "budgets", ".",
    " = ", "1", "-5", "1.5", "nan", "'x'", '"\\u0000"', "'''", "[", "{", "}", ",", "true", "1979-05-27", "9" * 5000,
    "\n", "#", "0x" + "f" * 999, "estimates", "share", "\ufeff", "\x1b",
]  # fmt: skip
JSON_PIECES = [
    "{", "}", "[", "]", ",", ":", '"v"', "1", "-1", "1e999", "9" * 5000, '"\\ud800"', "null", "true", '"phases"', "NaN",
    '"slicing"', " ", "\n", msgspec.json.encode(CALIBRATION).decode(), "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to be overwritten by every example."""
    return tmp_path_factory.mktemp("scratch") / "file"


@given(content=anything(TOML_PIECES))
def test_any_bytes_are_a_config_or_an_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    assert holds(lambda: load_config(str(scratch), required=True), Config)


@given(content=anything(JSON_PIECES))
def test_any_bytes_are_a_calibration_or_an_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    assert holds(lambda: load_calibration(str(scratch)), Calibration)


# --- Settings: files that change under a running daemon


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
    wait_for(lambda: mark(str(live.config)), "the file to have been left alone for a while")
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
    wait_for(lambda: mark(str(live.config)), "the file to have been left alone for a while")
    assert (live.refresh(), live.warn_pct) == (BROKEN, 80)
    assert (live.refresh(), live.warn_pct, live.faults) == (RELOADED, 70, [])


def test_marks(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert mark(str(path)) == ()
    path.touch()
    assert mark(str(path)) is None, "another write within the tick would leave the mark as it is"
    assert mark("/a\0b") is None


def test_file_system_that_does_not_answer_holds_nobody_up(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs cannot be had from a real file system here, so the loader waits for the test instead."""
    hangs, release = threading.Event(), threading.Event()

    def hang(_path: str) -> None:
        hangs.set()
        release.wait()

    monkeypatch.setattr(settings_module, "mark", hang)

    async def look() -> None:
        while not hangs.is_set():
            await live.settings.refresh(anyio.current_time() + 0.01)
        before = threading.active_count()
        for _ in range(10):
            await live.settings.refresh(anyio.current_time() + 0.2)
        assert threading.active_count() <= before + 1, "whoever gives up must not leave a thread behind each time"
        release.set()

    anyio.run(look)
    assert live.settings.config == Config()


# --- the command line


def check_config(home: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "fluxbudgetd", *arguments],
        env={**kept, "HOME": str(home), "PYTHONUTF8": "1", "XDG_RUNTIME_DIR": str(home / "run")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_check_config_without_any_file(tmp_path: Path) -> None:
    result = check_config(tmp_path, "--check-config")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"absent: {tmp_path}/.config/fluxbudget/config.toml (defaults)",
        f"absent: {tmp_path}/.config/fluxbudget/calibration.json (defaults)",
        f"absent: {tmp_path}/.claude/plugins/cache/*/interflux/*/config/flux-drive/budget.yaml (defaults)",
    ]


def test_check_config_with_every_file(tmp_path: Path) -> None:
    config, review = tmp_path / "own.toml", tmp_path / "own.yaml"
    config.write_text('[flux_drive]\nbudget_file = "~/own.yaml"\n')
    review.write_text("min_agents: 3\n")
    (tmp_path / "calibration.json").write_bytes(msgspec.json.encode(CALIBRATION))
    result = check_config(tmp_path, "--check-config", "--config", str(config))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"ok: {config}", f"ok: {tmp_path}/calibration.json", f"ok: {review}"]
    review.write_text("min_agents: -3\n")
    result = check_config(tmp_path, "--check-config", "--config", str(config))
    assert (result.returncode, len(result.stdout.splitlines())) == (78, 2)
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {review}: min_agents is -3; allowed: 0 to 1000",
        "hint: write what is allowed, or remove the key",
    ]


@pytest.mark.parametrize("arguments", [("--check-config",), ()], ids=["checked", "started"])
def test_broken_config_is_exit_code_78(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[runs]\nwarn_pct = 120\n")
    result = check_config(tmp_path, *arguments, "--config", str(config))
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {config}: runs.warn_pct is 120; allowed: 1 to 99",
        "hint: write what is allowed, or remove it to have the default",
    ]


def test_chosen_config_that_is_absent_is_exit_code_78(tmp_path: Path) -> None:
    result = check_config(tmp_path, "--check-config", "--config", f"{tmp_path}/none.toml")
    assert result.returncode == 78
    assert f"{tmp_path}/none.toml: the file does not exist" in result.stderr


def test_unreadable_file(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.touch(mode=0)
    result = check_config(tmp_path, "--check-config", "--config", str(config), prefix=OBEDIENT)
    assert result.returncode == 78
    assert result.stderr.splitlines() == [
        f"fluxbudgetd: {config}: it cannot be read: Permission denied",
        f"hint: make it readable: chmod u+r {config}",
    ]


def test_printed_config_is_the_shipped_file_and_checks_out(tmp_path: Path) -> None:
    """An installed wheel prints its own copy."""
    printed = check_config(tmp_path, "--print-config")
    assert (printed.returncode, printed.stdout, printed.stderr) == (0, TEMPLATE.read_text(), "")
    config = tmp_path / ".config" / "fluxbudget" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(printed.stdout)
    assert check_config(tmp_path, "--check-config").stdout.startswith(f"ok: {config}\n")


def test_printing_and_checking_at_once_is_a_usage_error(tmp_path: Path) -> None:
    assert check_config(tmp_path, "--print-config", "--check-config").returncode == 64


@pytest.mark.parametrize("action", ["--check-config", "--print-config"])
def test_output_that_cannot_be_written(tmp_path: Path, action: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "fluxbudgetd", action],
            env={**os.environ, "HOME": str(tmp_path)}, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (result.returncode, "the output cannot be written" in result.stderr) == (70, True)
