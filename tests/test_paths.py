"""Paths of the socket, state, sources and configuration, for every combination of environment and options."""

from pathlib import Path

import pytest

from fluxbudgetd.config.locations import locate
from fluxbudgetd.wire.paths import socket_path

UNUSED_UID = 4_000_000_000  # has no /run/user directory


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"FLUXBUDGET_SOCKET": "/a/b.sock", "XDG_RUNTIME_DIR": "/run/x"}, "/a/b.sock"),
        ({"XDG_RUNTIME_DIR": "/run/x", "HOME": "/h"}, "/run/x/fluxbudget/fluxbudgetd.sock"),
        ({"XDG_RUNTIME_DIR": "", "HOME": "/h"}, "/h/.local/state/fluxbudget/run/fluxbudgetd.sock"),
        ({"HOME": "/h"}, "/h/.local/state/fluxbudget/run/fluxbudgetd.sock"),
    ],
)
def test_socket_path(environ: dict[str, str], expected: str) -> None:
    assert socket_path(environ, UNUSED_UID) == expected


def test_relative_socket_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert socket_path({"FLUXBUDGET_SOCKET": "x.sock"}, UNUSED_UID) == str(tmp_path / "x.sock")


@pytest.mark.parametrize(
    ("environ", "arguments", "state", "database"),
    [
        ({"HOME": "/h"}, {}, "/h/.local/state/fluxbudget", "/h/.claude/interstat/metrics.db"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/s"}, {}, "/s/fluxbudget", "/h/.claude/interstat/metrics.db"),
        ({"HOME": "/h", "STATE_DIRECTORY": "/d:/e"}, {}, "/d", "/h/.claude/interstat/metrics.db"),
        ({"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}, {}, "/h/.local/state/fluxbudget", "/c/interstat/metrics.db"),
        ({"HOME": "/h", "INTERSTAT_DB": "/i.db", "CLAUDE_CONFIG_DIR": "/c"}, {}, "/h/.local/state/fluxbudget", "/i.db"),
        (
            {"HOME": "/h", "INTERSTAT_DB": "/i.db", "STATE_DIRECTORY": "/d"},
            {"state_dir": "/own", "interstat_db": "/own.db", "claude_dir": "/cc"},
            "/own",
            "/own.db",
        ),
        ({"HOME": "/h"}, {"claude_dir": "/cc"}, "/h/.local/state/fluxbudget", "/cc/interstat/metrics.db"),
    ],
)
def test_state_directory_and_database(
    environ: dict[str, str], arguments: dict[str, str], state: str, database: str
) -> None:
    found = locate(environ, UNUSED_UID, **arguments)
    assert (found.state_dir, found.interstat_db) == (state, database)


@pytest.mark.parametrize(
    ("environ", "arguments", "config", "is_chosen"),
    [
        ({"HOME": "/h"}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, {}, "/x/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": ""}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "relative"}, {}, "/h/.config/fluxbudget/config.toml", False),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, {"config": "/own.toml"}, "/own.toml", True),
    ],
)
def test_config_path(environ: dict[str, str], arguments: dict[str, str], config: str, is_chosen: bool) -> None:
    found = locate(environ, UNUSED_UID, **arguments)
    assert (found.config, found.config_is_chosen) == (config, is_chosen)


def test_relative_config_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate({"HOME": "/h"}, UNUSED_UID, config="own.toml").config == str(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("environ", "arguments", "expected"),
    [
        ({"HOME": "/h"}, {}, "/h/.claude"),
        ({"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}, {}, "/c"),
        ({"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}, {"claude_dir": "/own"}, "/own"),
    ],
)
def test_claude_directory(environ: dict[str, str], arguments: dict[str, str], expected: str) -> None:
    assert locate(environ, UNUSED_UID, **arguments).claude_dir == expected
