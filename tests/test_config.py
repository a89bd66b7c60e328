"""config.toml: its values are used, and each error is one line that names the key."""

import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given

from fluxbudgetd.config.calibration import load_calibration
from fluxbudgetd.config.loading import load_config
from fluxbudgetd.config.schema import Config, Stage
from fluxbudgetd.errors import ConfigError
from harness.configuration import IN_THE_WAY, TEMPLATE, anything, holds, wrong

ROOT = Path(__file__).parents[1]
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


def test_shipped_file_has_the_defaults() -> None:
    """It has every key, at its default."""
    assert load_config(str(TEMPLATE), required=True) == Config()
    assert set(keys(tomllib.loads(TEMPLATE.read_text()))) == set(keys(msgspec.to_builtins(Config())))


def test_documentation_has_every_key() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    # One row describes all stages, one all phases, one all complexities.
    for key in keys(msgspec.to_builtins(Config())):
        table, _, name = key.rpartition(".")
        shown = {"phases.estimates": "PHASE", "runs.budgets": "1"}.get(table, name)
        assert f"`{shown}`" in text, key


def test_absent_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(str(tmp_path / "none.toml"), required=False) == Config()
    (tmp_path / "file").touch()
    assert load_config(str(tmp_path / "file" / "config.toml"), required=False) == Config()


def test_required_file_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert wrong(lambda: load_config(str(path), required=True), path) == "the file does not exist"


def test_defaults() -> None:
    config = Config()
    assert [config.runs.budgets.of_complexity(n) for n in range(1, 6)] == [50_000, 100_000, 250_000, 500_000, 1_000_000]
    assert list(config.phases.estimates) == list(config.runs.phases)
    assert (config.phases.of("executing"), config.phases.of("another")) == (150_000, 30_000)


def test_file_changes_only_the_keys_that_it_has(tmp_path: Path) -> None:
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


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    assert config_of(tmp_path, "\ufeff[runs]\nwarn_pct = 7\n").runs.warn_pct == 7


TABLES = "admission, beads, channels, claude_dirs, clavain, flux_drive, intercore, phases, runs, stages, warnings"
RUNS = "budgets, complexity, cost_basis, enforcement, phases, warn_pct"
A_PATH = "an absolute path, one that begins with ~/, or nothing for the installed plugin's"
NAMES = "1 to 64 letters, digits, dots, colons, underscores or hyphens"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[runs]\nwarn_pct = 120", "runs.warn_pct is 120; allowed: 1 to 99"),
        ("[runs]\nwarn_pct = 0", "runs.warn_pct is 0; allowed: 1 to 99"),
        ("[runs]\nwarn_pct = true", "runs.warn_pct is true; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = 80.0", "runs.warn_pct is 80.0; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = nan", "runs.warn_pct is nan; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = '80'", 'runs.warn_pct is "80" (a string); allowed: a whole number, 1 to 99'),
        ("[runs]\nwarn_pct = [1]", "runs.warn_pct is an array; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = {a = 1}", "runs.warn_pct is a table; allowed: a whole number, 1 to 99"),
        ("[runs]\nwarn_pct = 2026-01-02", "runs.warn_pct is 2026-01-02; allowed: a whole number, 1 to 99"),
        (f"[runs]\nwarn_pct = 0x{'f' * 90_000}", "runs.warn_pct is a number of more than 57 digits; allowed: 1 to 99"),
        (
            '[runs]\nwarn_pct = "\\u001b[2J\\n"',
            'runs.warn_pct is "\\x1b[2J\\n" (a string); allowed: a whole number, 1 to 99',
        ),
        ("[runs]\nwarnpct = 1", f"runs.warnpct is not a key; allowed: {RUNS}"),
        ("[runs]\n'a b' = 1", f'runs."a b" is not a key; allowed: {RUNS}'),
        ("run = 1", f"run is not a key; allowed: {TABLES}"),
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
        ("[phases.estimates]\n'a b' = 1", f'phases.estimates."a b" is not an allowed name; allowed: {NAMES}'),
        ("[stages.build]\nshare = 101", "stages.build.share is 101; allowed: 0 to 100"),
        ("[stages.build]\nfloor = -1", f"stages.build.floor is -1; allowed: 0 to {MAX}"),
        ("[stages.build]\nshare = 41", "stages has shares of 101 in total; allowed: shares of at most 100 in total"),
        ("[stages.test]\nshare = 1", "stages.test is not a key; allowed: build, design, discover, reflect, ship"),
        ("[admission]\nsubagent_ceiling = 0.9", "admission.subagent_ceiling is 0.9; allowed: a number, 1 to 1000"),
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
        (f"a = {'[' * 5000}", "arrays or tables are nested too deeply"),
        ("#" * ((1 << 20) + 1), "it is larger than 1 MiB; allowed: at most 1 MiB"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_error_message(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert wrong_config(tmp_path, content) == message


def test_long_values_are_cut(tmp_path: Path) -> None:
    message = wrong_config(tmp_path, f"[runs]\nenforcement = '{'x' * 100_000}'")
    assert message == f'runs.enforcement is "{"x" * 57}…"; allowed: "hard", "soft"'
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
    assert caught.value.hint == "remove it, or update fluxbudget"


@pytest.mark.parametrize(("make", "message"), IN_THE_WAY)
def test_path_that_is_not_a_regular_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    config, calibration = tmp_path / "config.toml", tmp_path / "calibration.json"
    make(config)
    make(calibration)
    assert wrong(lambda: load_config(str(config), required=False), config) == message
    assert wrong(lambda: load_calibration(str(calibration)), calibration) == message


def test_invalid_paths(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert wrong(lambda: load_config(str(path), required=False), path) == "it cannot be read: File name too long"
    with pytest.raises(ConfigError, match="this is not a path"):
        load_config("/a\0b", required=False)
    strange = os.fsdecode(bytes(tmp_path) + b"/\xff\n")
    with pytest.raises(ConfigError) as caught:
        load_config(strange, required=True)
    assert caught.value.message == f"{tmp_path}/\\xff\\n: the file does not exist"


TOML_PIECES = [
    "[runs]\n", "[runs", "[stages.build]\n", "[[", "]", "runs", "phases", "warn_pct", "thresholds", "budgets", ".",
    " = ", "1", "-5", "1.5", "nan", "'x'", '"\\u0000"', "'''", "[", "{", "}", ",", "true", "1979-05-27", "9" * 5000,
    "\n", "#", "0x" + "f" * 999, "estimates", "share", "\ufeff", "\x1b",
]  # fmt: skip


@given(content=anything(TOML_PIECES))
def test_any_bytes_are_a_config_or_an_error(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    assert holds(lambda: load_config(str(scratch), required=True), Config)
